"""The registry of Redis keys and channels. Each names its owner and what it holds; the tenant is part of every key."""

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


def admission_holds(tenant_id: str, period: str) -> str:
    """Hash: hold id -> `upgrades,tokens,embeddings,ended,counted`. A hold is never deleted by time alone."""
    return f"{PREFIX}:{{{tenant_id}}}:holds:{period}"


def admission_due(tenant_id: str, period: str) -> str:
    """Sorted set: hold id by the time (ms) at which its record is looked at."""
    return f"{PREFIX}:{{{tenant_id}}}:due-holds:{period}"


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
