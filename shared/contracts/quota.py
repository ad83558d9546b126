"""Contracts of plans, quotas and holds: the threshold event, public HTTP bodies, and bodies between services."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from shared.contracts.contract import Contract, Timestamp
from shared.contracts.internal_http import TenantCounters
from shared.contracts.upgrade_http import ClientBody

ThresholdPercent = Literal[80, 100]
THRESHOLDS: tuple[ThresholdPercent, ...] = (80, 100)

Limit = Annotated[int, Field(ge=0, le=10**15)]


class Meter(StrEnum):
    """What is limited: upgrades that were delivered, model tokens in and out, texts embedded."""

    UPGRADES = "upgrades"
    TOKENS = "tokens"
    EMBEDDINGS = "embeddings"


class Plan(StrEnum):
    """A set of limits; `PLAN_LIMITS` has them."""

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

    `used` and `limit` are the values at `occurredAt`, in upgrades, tokens or embeddings.
    """

    tenant_id: str
    meter: Meter
    period: QuotaPeriod
    threshold_percent: ThresholdPercent
    used: int = Field(ge=0)
    limit: int = Field(ge=0)
    occurred_at: Timestamp


class NewPlan(ClientBody):
    """Body of `PUT /api/admin/tenants/{id}/plan`. `overrides` replace single limits of the plan; null is unlimited."""

    plan: Plan
    overrides: dict[Meter, Limit | None] = {}


class PlanView(Contract):
    """A tenant's plan. `limits` are those of the plan with the overrides applied."""

    tenant_id: str
    plan: Plan
    overrides: dict[Meter, Limit | None]
    limits: Limits


class MeterView(Contract):
    """One meter: what is counted, what running work may still use, and what is left for more."""

    limit: int | None = Field(description="null when unlimited")
    used: int
    held: int
    remaining: int | None = Field(description="null when unlimited")


class MetersView(Contract):
    """All meters of a tenant."""

    upgrades: MeterView
    tokens: MeterView
    embeddings: MeterView


class QuotaView(Contract):
    """Answer of `GET /api/quota`, as of one moment of the current UTC calendar month."""

    plan: Plan
    period: QuotaPeriod
    meters: MetersView


# usage: PUT /internal/tenants/{tenantId}/plan[?ifUnset=true] (PlanChange) -> TenantQuota of the current period
class PlanChange(Contract):
    """The plan to set for a tenant. `overrides` replace single limits of it; null is unlimited."""

    plan: Plan
    overrides: dict[Meter, Limit | None] = {}


# usage: GET /internal/tenants/{tenantId}/quota?period=YYYY-MM -> TenantQuota
class TenantQuota(Contract):
    """A tenant's limits and counters in a period. A tenant without a plan of its own is on FREE."""

    tenant_id: str
    period: str
    plan: Plan
    plan_version: int = Field(description="0 until a plan is set; each change adds 1")
    limits: Limits
    counters: TenantCounters


# usage: POST /internal/tenants/{tenantId}/standing?period=YYYY-MM[&asOf=version] (EventIds) -> TenantStanding
class TenantStanding(Contract):
    """A tenant's quota, and which of the requested events its counters did not include at the version `asOf`."""

    quota: TenantQuota
    as_of: int = Field(description="the requested version, or that of `quota` when the requested one is too old")
    missing: list[str]


# gateway: POST /internal/holds/embeddings (EmbeddingsHold) -> 204, or 429 quota_exceeded; the same id twice is one hold
class EmbeddingsHold(Contract):
    """The most that one attempt to index a document, one search, or one repair of a model's answer may use.

    `holdId` identifies the attempt. A repair holds tokens only.
    """

    hold_id: str
    tenant_id: str
    period: str = Field(pattern=r"^\d{4}-(0[1-9]|1[0-2])$")
    embeddings: int = Field(ge=0)
    tokens: int = Field(ge=0)
    lives_seconds: int = Field(default=90_000, gt=0, description="when the hold expires if it is not ended before")


class SpentEvent(Contract):
    """A `usage.recorded.v1` event that work under a hold has recorded."""

    event_id: str
    embeddings: int = 0
    tokens: int = 0


# gateway: POST /internal/holds/embeddings/{holdId}/end (EmbeddingsHoldEnd) -> 204, also for an unknown hold
class EmbeddingsHoldEnd(Contract):
    """The attempt has ended, and this is what it used."""

    spent: list[SpentEvent] = []


# summarizer, rag: GET /internal/upgrades/{upgradeId}/spent?tenantId= -> SpentEvents
class SpentEvents(Contract):
    """The usage events that a stage has recorded for an upgrade; empty when it has done no work for it."""

    events: list[SpentEvent]
