"""Plans, quotas and holds: events and HTTP bodies."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from shared.contracts.contract import Contract, Timestamp
from shared.contracts.internal_http import TenantCounters
from shared.contracts.upgrade_http import ClientBody


class Meter(StrEnum):
    """What is limited: upgrades that were delivered, model tokens in and out, texts embedded."""

    UPGRADES = "upgrades"
    TOKENS = "tokens"
    EMBEDDINGS = "embeddings"


class Plan(StrEnum):
    FREE = "FREE"
    PLUS = "PLUS"
    PRO = "PRO"
    ENTERPRISE = "ENTERPRISE"


class Limits(Contract):
    """The most of each meter in one UTC calendar month; None is unlimited."""

    upgrades: int | None
    tokens: int | None
    embeddings: int | None

    def with_overrides(self, overrides: "dict[Meter, int | None]") -> "Limits":
        """These limits with single meters replaced."""
        return self.model_copy(update={meter.value: limit for meter, limit in overrides.items()})


PLAN_LIMITS: dict[Plan, Limits] = {
    Plan.FREE: Limits(upgrades=1_000, tokens=1_000_000, embeddings=10_000),
    Plan.PLUS: Limits(upgrades=10_000, tokens=10_000_000, embeddings=100_000),
    Plan.PRO: Limits(upgrades=100_000, tokens=100_000_000, embeddings=1_000_000),
    Plan.ENTERPRISE: Limits(upgrades=None, tokens=None, embeddings=None),
}


Limit = Annotated[int, Field(ge=0, le=10**15)]


# usage: PUT /internal/tenants/{tenantId}/plan[?ifUnset=true] (PlanChange) -> TenantQuota of the current period
class PlanChange(Contract):
    """The plan a tenant is to have from now on. `overrides` replace single limits of it; null is unlimited."""

    plan: Plan
    overrides: dict[Meter, Limit | None] = {}


# usage: GET /internal/tenants/{tenantId}/quota?period=YYYY-MM -> TenantQuota
class TenantQuota(Contract):
    """What a tenant may use in a period and what is counted of it. A tenant nobody gave a plan is on FREE."""

    tenant_id: str
    period: str
    plan: Plan
    plan_version: int = Field(description="0 while nobody has set a plan, then one more with each change")
    limits: Limits
    counters: TenantCounters


# usage: POST /internal/tenants/{tenantId}/standing?period=YYYY-MM[&asOf=version] (EventIds) -> TenantStanding
class TenantStanding(Contract):
    """A tenant's quota, and which of the events that were asked for its counters lacked when they had a version."""

    quota: TenantQuota
    as_of: int = Field(description="the version that was asked for, or when it is too long ago that of `quota`")
    missing: list[str]


class NewPlan(ClientBody):
    """Body of `PUT /api/admin/tenants/{id}/plan`. `overrides` replace single limits of the plan; null is unlimited."""

    plan: Plan
    overrides: dict[Meter, Limit | None] = {}


class PlanView(Contract):
    """A tenant's plan, and what it comes to with its overrides."""

    tenant_id: str
    plan: Plan
    overrides: dict[Meter, Limit | None]
    limits: Limits


ThresholdPercent = Literal[80, 100]
THRESHOLDS: tuple[ThresholdPercent, ...] = (80, 100)


class QuotaPeriod(Contract):
    """A UTC calendar month: `start` belongs to it, `end` is the first moment after it."""

    start: Timestamp
    end: Timestamp

    @staticmethod
    def of(period: str) -> "QuotaPeriod":
        """The bounds of a month written as `YYYY-MM`."""
        year, month = int(period[:4]), int(period[5:])
        after = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
        return QuotaPeriod(start=datetime(year, month, 1, tzinfo=UTC), end=after)


class QuotaThresholdReached(Contract):
    """Data of `quota.threshold-reached.v1`: one event for each tenant, meter, period and threshold.

    `used` and `limit` are what they were when it was noticed, in upgrades, tokens or embeddings.
    """

    tenant_id: str
    meter: Meter
    period: QuotaPeriod
    threshold_percent: ThresholdPercent
    used: int = Field(ge=0)
    limit: int = Field(ge=0)
    occurred_at: Timestamp


class MeterView(Contract):
    """One meter: what is counted, what running work may still use, and what is left for more."""

    limit: int | None = Field(description="null when unlimited")
    used: int
    held: int
    remaining: int | None = Field(description="null when unlimited")


class MetersView(Contract):
    upgrades: MeterView
    tokens: MeterView
    embeddings: MeterView


class QuotaView(Contract):
    """Answer of `GET /api/quota`, as of one moment of the current UTC calendar month."""

    plan: Plan
    period: QuotaPeriod
    meters: MetersView


# gateway: POST /internal/holds/embeddings (EmbeddingsHold) -> 204, or 429 quota_exceeded; the same id twice is one hold
class EmbeddingsHold(Contract):
    """What indexing a document, or a search, may use at most. `holdId` names one attempt at it."""

    hold_id: str
    tenant_id: str
    period: str = Field(pattern=r"^\d{4}-(0[1-9]|1[0-2])$")
    embeddings: int = Field(ge=0)
    tokens: int = Field(ge=0)
    lives_seconds: int = Field(default=90_000, gt=0, description="not ended by then, it is given up")


# gateway: POST /internal/holds/embeddings/{holdId}/end (EmbeddingsHoldEnd) -> 204, also for a hold that nobody has
class SpentEvent(Contract):
    """A `usage.recorded.v1` that the attempt has recorded."""

    event_id: str
    embeddings: int = 0
    tokens: int = 0


# summarizer, rag: GET /internal/upgrades/{upgradeId}/spent?tenantId= -> SpentEvents
class SpentEvents(Contract):
    """What a stage has recorded of an upgrade; none where it has done nothing for it."""

    events: list[SpentEvent]


class EmbeddingsHoldEnd(Contract):
    """The attempt is over, and this is what it used."""

    spent: list[SpentEvent] = []
