"""Contracts of usage: the event that every operation records, and the statistics made from these events."""

import re
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from shared.contracts.contract import Contract, Timestamp, derived_id
from shared.contracts.upgrade_tasks import ComponentUsage, Origin, UpgradeTask

_DAY = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})([Tt]00:00:00(\.0+)?([Zz]|\+00:00))?")


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


def _utc_day(value: Any) -> date:
    # Another offset, or seconds since 1970, would be read as a UTC day that the caller may not mean.
    match = _DAY.fullmatch(value) if isinstance(value, str) else None
    try:
        if match:
            return date.fromisoformat(match[1])
    except ValueError:
        pass
    raise PydanticCustomError("utc_day", "Must be a day as YYYY-MM-DD, or its midnight in UTC as YYYY-MM-DDT00:00:00Z")


UtcDay = Annotated[
    date,
    BeforeValidator(_utc_day),
    WithJsonSchema({"anyOf": [{"type": "string", "format": "date"}, {"type": "string", "format": "date-time"}]}),
]
"""A UTC day in a query: `YYYY-MM-DD`, or the RFC 3339 time of its midnight in UTC, written in UTC."""

GroupBy = Literal["day", "component", "user"]


class UpgradeCounts(Contract):
    """Ended upgrades, in total and by status."""

    total: int = 0
    upgraded: int = 0
    cached: int = 0
    original: int = 0
    failed: int = 0


class LatencyQuantiles(Contract):
    """Latencies in milliseconds, within 2 %: of whole upgrades, or in a group by component of its operations."""

    p50: int = 0
    p95: int = 0
    p99: int = 0


class StatsTotals(Contract):
    """What was used, and how upgrades ended."""

    upgrades: UpgradeCounts = UpgradeCounts()
    tokens_in: int = 0
    tokens_out: int = 0
    embeddings: int = 0
    cost_usd: str = Field(default="0.000000000", description="decimal, nine places")
    cache_hit_rate: float = Field(default=0.0, description="share of the operations that a cache answered, 0..1")
    error_rate: float = Field(default=0.0, description="share of the upgrades that ended as original or failed, 0..1")
    latency_ms: LatencyQuantiles = LatencyQuantiles()


class StatsGroup(StatsTotals):
    """The totals of one group. `key` is a day (`YYYY-MM-DD`), a component, or a user's keyed hash (or `anonymous`)."""

    key: str


# usage: GET /internal/tenants/{tenantId}/stats?from=&to=&groupBy= -> TenantStats
class TenantStats(Contract):
    """A tenant's statistics. `from` is inclusive, `to` exclusive; both are UTC days, `YYYY-MM-DD`."""

    from_day: str = Field(alias="from")
    to_day: str = Field(alias="to")
    totals: StatsTotals
    groups: list[StatsGroup] = []
