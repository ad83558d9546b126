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
