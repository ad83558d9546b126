"""Plans: how much a tenant may use in a calendar month, and what it has used of that."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from shared.contracts.contract import Contract
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
