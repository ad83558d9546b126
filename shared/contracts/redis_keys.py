"""The registry of Redis keys and channels: each function returns one key; its docstring states the type and content.

The tenant is part of every key with a tenant's data. The format of an admission state is in `admission_state`.
"""

import re

PREFIX = "pu"

UPGRADE_EVENTS_TTL_SECONDS = 3600
UPGRADE_EVENTS_MAX_LENGTH = 32

ADMISSION_COUNTERS = f"{PREFIX}:{{*}}:admission:*"
"""The pattern of all keys of `admission_counters`."""
ADMISSION_DUE = f"{PREFIX}:{{*}}:due-holds:*"
"""The pattern of all keys of `admission_due`."""
DUE_SWEEP = f"{PREFIX}:due-holds-sweep"
"""String: set while a gateway replica sweeps due holds; expires after the longest time that one sweep may take."""


def upgrade_events(tenant_id: str, upgrade_id: str) -> str:
    """Stream: the events of one upgrade, written by the gateway and the stages. Entry ids are `<step>-0`."""
    return f"{PREFIX}:{tenant_id}:upgrade-events:{upgrade_id}"


def gateway_replies(replica_id: str) -> str:
    """Pub/sub channel: results that one gateway replica waits for. Messages name their tenant and upgrade."""
    return f"{PREFIX}:gateway-replies:{replica_id}"


# Admission, written by the gateway. The tenant is a hash tag, which puts all keys of a script into one slot.
def admission_counters(tenant_id: str, period: str) -> str:
    """Hash: the fields of `admission_state`: usage's counters with their version, plan and limits, sums of holds."""
    return f"{PREFIX}:{{{tenant_id}}}:admission:{period}"


def admission_holds(tenant_id: str, period: str) -> str:
    """Hash: hold id -> `StoredHold.to_text()`. Holds do not expire; the gateway checks due ones before a drop."""
    return f"{PREFIX}:{{{tenant_id}}}:holds:{period}"


def admission_due(tenant_id: str, period: str) -> str:
    """Sorted set: hold id by the time (ms) at which the gateway compares the hold with its record."""
    return f"{PREFIX}:{{{tenant_id}}}:due-holds:{period}"


def admission_rebuild(tenant_id: str, period: str) -> str:
    """String: the token of the rebuild that may install this state. Emptying Redis removes it."""
    return f"{PREFIX}:{{{tenant_id}}}:rebuild:{period}"


def admission_rate(tenant_id: str, subject: str) -> str:
    """Sorted set: upgrade id by the time (ms) at which it was accepted for this user or credential."""
    return f"{PREFIX}:{{{tenant_id}}}:rate:{subject}"


def admission_claim(tenant_id: str, key_hash: str) -> str:
    """String: `upgradeId|bodyHash` of the request that claimed an idempotency key. Expires after 24 h."""
    return f"{PREFIX}:{{{tenant_id}}}:idem:{key_hash}"


def redis_incarnation(run_id: str) -> str:
    """String: when (ms, Redis's clock) a gateway first saw this Redis process, or first saw it after it was emptied."""
    return f"{PREFIX}:incarnation:{run_id}"


def failed_authentication(address_hash: str) -> str:
    """Sorted set: times (ms) at which requests of a client address were refused for their credential."""
    return f"{PREFIX}:{{{address_hash}}}:failed-authentication"


def admission_tenant_and_period(key: str) -> tuple[str, str] | None:
    """Tenant and period of a key of `admission_counters`; None for any other key."""
    return _tenant_and_period("admission", key)


def due_tenant_and_period(key: str) -> tuple[str, str] | None:
    """Tenant and period of a key of `admission_due`; None for any other key."""
    return _tenant_and_period("due-holds", key)


def _tenant_and_period(kind: str, key: str) -> tuple[str, str] | None:
    match = re.fullmatch(rf"{PREFIX}:\{{(.+)\}}:{kind}:(\d{{4}}-\d{{2}})", key)
    return (match[1], match[2]) if match else None
