"""Which plan a tenant is on, and what that allows."""

from typing import Protocol

from shared.contracts.internal_http import TenantCounters
from shared.contracts.plans import PLAN_LIMITS, Meter, Plan, PlanChange, TenantQuota


class PlanRecord(Protocol):
    """A tenant's plan as it is stored. `version` grows with each change; 0 where nothing was ever stored."""

    @property
    def plan(self) -> Plan: ...

    @property
    def overrides(self) -> dict[Meter, int | None]: ...

    @property
    def version(self) -> int: ...


class Plans(Protocol):
    async def of(self, tenant_id: str) -> PlanRecord:
        """The tenant's plan; FREE at version 0 when nobody has set one. Raises StorageUnavailable."""

    async def set(self, tenant_id: str, change: PlanChange, *, if_unset: bool = False) -> PlanRecord:
        """Sets the plan, or leaves the one that is there when `if_unset`; gives the plan that stands."""


def quota_of(tenant_id: str, period: str, record: PlanRecord, counters: TenantCounters) -> TenantQuota:
    """The tenant's quota in a period: its plan's limits with its own overrides, and what is counted."""
    return TenantQuota(
        tenant_id=tenant_id,
        period=period,
        plan=record.plan,
        plan_version=record.version,
        limits=PLAN_LIMITS[record.plan].with_overrides(record.overrides),
        counters=counters,
    )
