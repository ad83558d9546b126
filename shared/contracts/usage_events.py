"""What one operation used, as a fact for the ledger."""

from pydantic import Field

from shared.contracts.contract import Contract, Timestamp
from shared.contracts.ids import derived_id
from shared.contracts.upgrade_tasks import ComponentUsage, Origin, UpgradeTask


class UsageRecorded(Contract):
    """Data of `usage.recorded.v1`. `eventId` is derived from what it counts, so a repeat is the same event."""

    event_id: str
    tenant_id: str
    user_ref: str | None = None
    upgrade_id: str | None = None
    origin: Origin = "client"
    component: str
    operation: str
    tokens_in: int = Field(default=0, ge=0)
    tokens_out: int = Field(default=0, ge=0)
    embeddings: int = Field(default=0, ge=0)
    cost_nano_usd: int = Field(default=0, ge=0)
    latency_ms: int = Field(default=0, ge=0)
    cache_hit: bool = False
    model: str | None = None
    period: str
    occurred_at: Timestamp

    @staticmethod
    def for_task(task: UpgradeTask, usage: ComponentUsage, sequence: int, occurred_at: Timestamp) -> "UsageRecorded":
        """The event for the `sequence`-th operation of a component within one upgrade."""
        return UsageRecorded(
            event_id=derived_id(task.upgrade_id, usage.component, usage.operation, str(sequence)),
            tenant_id=task.tenant_id,
            user_ref=task.user_ref,
            upgrade_id=task.upgrade_id,
            origin=task.origin,
            period=task.period,
            occurred_at=occurred_at,
            **usage.model_dump(),
        )
