"""The registry of Redis keys and channels. Each names its owner and what it holds; the tenant is part of every key."""

import re

PREFIX = "pu"


def upgrade_events(tenant_id: str, upgrade_id: str) -> str:
    """Stream, written by gateway and stages: what happened to one upgrade so far. Entry ids are `<step>-0`."""
    return f"{PREFIX}:{tenant_id}:upgrade-events:{upgrade_id}"


def gateway_replies(replica_id: str) -> str:
    """Pub/sub channel, read by one gateway replica: results it waits for. Carries tenant and upgrade id inside."""
    return f"{PREFIX}:gateway-replies:{replica_id}"


UPGRADE_EVENTS_TTL_SECONDS = 3600
UPGRADE_EVENTS_MAX_LENGTH = 32


# Admission, written by the gateway. The tenant stands in a hash tag, so that all keys of one script meet in one slot.
def admission_counters(tenant_id: str, period: str) -> str:
    """Hash: the counters that usage confirmed last with their version, the limits, the sums of all holds."""
    return f"{PREFIX}:{{{tenant_id}}}:admission:{period}"


ADMISSION_COUNTERS = f"{PREFIX}:{{*}}:admission:*"
"""The pattern that the names of all of them match."""


def admission_tenant_and_period(name: str) -> tuple[str, str] | None:
    """Tenant and period from the name of such a hash; None for any other name."""
    match = re.fullmatch(PREFIX + r":\{(.+)\}:admission:(\d{4}-\d{2})", name)
    return (match[1], match[2]) if match else None


def admission_holds(tenant_id: str, period: str) -> str:
    """Hash: hold id -> `upgrades,tokens,embeddings,ended,counted`. A hold is never deleted by time alone."""
    return f"{PREFIX}:{{{tenant_id}}}:holds:{period}"


def admission_due(tenant_id: str, period: str) -> str:
    """Sorted set: hold id by the time (ms) at which its record is looked at."""
    return f"{PREFIX}:{{{tenant_id}}}:due-holds:{period}"


ADMISSION_DUE = f"{PREFIX}:{{*}}:due-holds:*"
"""The pattern that the names of all of them match."""
DUE_SWEEP = f"{PREFIX}:due-holds-sweep"
"""String: somebody looks for holds that are due; lives as long as one look may take."""


def due_tenant_and_period(name: str) -> tuple[str, str] | None:
    """Tenant and period from the name of such a set; None for any other name."""
    match = re.fullmatch(PREFIX + r":\{(.+)\}:due-holds:(\d{4}-\d{2})", name)
    return (match[1], match[2]) if match else None


def admission_rebuild(tenant_id: str, period: str) -> str:
    """String: the token of the rebuild that may install this state; gone when Redis was emptied meanwhile."""
    return f"{PREFIX}:{{{tenant_id}}}:rebuild:{period}"


def admission_rate(tenant_id: str, subject: str) -> str:
    """Sorted set: upgrade id by the time (ms) at which it was accepted for this user or credential."""
    return f"{PREFIX}:{{{tenant_id}}}:rate:{subject}"


def admission_claim(tenant_id: str, key_hash: str) -> str:
    """String: `upgradeId|bodyHash` of the request that claimed an idempotency key; lives 24 h."""
    return f"{PREFIX}:{{{tenant_id}}}:idem:{key_hash}"


def redis_incarnation(run_id: str) -> str:
    """String: when (Redis's own ms) a Redis process, or one that was emptied, was first seen by a gateway."""
    return f"{PREFIX}:incarnation:{run_id}"


def failed_authentication(address_hash: str) -> str:
    """Sorted set: when requests of a client address were refused for their credential, ms."""
    return f"{PREFIX}:{{{address_hash}}}:failed-authentication"
