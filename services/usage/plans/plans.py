"""Plans of tenants: which one a tenant is on, what it allows, and where that is stored."""

import collections.abc
from dataclasses import dataclass, field
from typing import Any, Protocol

from shared.contracts.contract import format_utc, now_utc
from shared.contracts.internal_http import TenantCounters
from shared.contracts.quota import PLAN_LIMITS, Meter, Plan, PlanChange, TenantQuota
from shared.storage.documents import Collection, CollectionSpec, DuplicateKey


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


PLANS = CollectionSpec("plans")


@dataclass(frozen=True)
class StoredPlan:
    """A tenant's plan; by itself FREE, as long as nobody has set one."""

    plan: Plan = Plan.FREE
    overrides: dict[Meter, int | None] = field(default_factory=dict)
    version: int = 0


class PlanStore:
    """`Plans` on a collection. Every call may raise StorageUnavailable."""

    def __init__(self, plans: Collection) -> None:
        self._plans = plans

    async def of(self, tenant_id: str) -> StoredPlan:
        return _plan_of(await self._plans.get(tenant_id))

    async def of_each(self, tenant_ids: collections.abc.Collection[str]) -> dict[str, PlanRecord]:
        """The plan of each tenant."""
        stored = {document["_id"]: document for document in await self._plans.get_many(list(tenant_ids))}
        return {tenant_id: _plan_of(stored.get(tenant_id)) for tenant_id in tenant_ids}

    async def set(self, tenant_id: str, change: PlanChange, *, if_unset: bool = False) -> StoredPlan:
        body = change.to_document() | {"changedAt": format_utc(now_utc())}
        if if_unset:
            stored, _ = await self._plans.insert_if_absent({"_id": tenant_id, "version": 1, **body})
            return _plan_of(stored)
        update = {"$set": body, "$inc": {"version": 1}}
        try:
            stored_now = await self._plans.find_one_and_update({"_id": tenant_id}, update, upsert=True)
        except DuplicateKey:  # another process made it at this moment; now it can be changed
            stored_now = await self._plans.find_one_and_update({"_id": tenant_id}, update)
        return _plan_of(stored_now)


def _plan_of(document: dict[str, Any] | None) -> StoredPlan:
    if document is None:
        return StoredPlan()
    overrides = {Meter(meter): limit for meter, limit in document.get("overrides", {}).items()}
    return StoredPlan(Plan(document["plan"]), overrides, document["version"])
