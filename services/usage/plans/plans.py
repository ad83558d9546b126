"""Stores the plan of each tenant, and computes the quota that it allows."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from shared.contracts.contract import format_utc, now_utc
from shared.contracts.internal_http import TenantCounters
from shared.contracts.quota import PLAN_LIMITS, Meter, Plan, PlanChange, TenantQuota
from shared.storage.documents import Collection as DocumentCollection
from shared.storage.documents import CollectionSpec, DuplicateKey

PLANS = CollectionSpec("plans")


@dataclass(frozen=True)
class TenantPlan:
    """A tenant's plan; the default is the plan of a tenant for whom none was set. `version` grows with each change."""

    plan: Plan = Plan.FREE
    overrides: dict[Meter, int | None] = field(default_factory=dict)
    version: int = 0


def quota_of(tenant_id: str, period: str, plan: TenantPlan, counters: TenantCounters) -> TenantQuota:
    """The tenant's quota in a period: the limits of its plan with its own overrides, and its counters."""
    return TenantQuota(
        tenant_id=tenant_id,
        period=period,
        plan=plan.plan,
        plan_version=plan.version,
        limits=PLAN_LIMITS[plan.plan].with_overrides(plan.overrides),
        counters=counters,
    )


class PlanStore:
    """The plans by tenant id. Every method may raise StorageUnavailable."""

    def __init__(self, plans: DocumentCollection) -> None:
        self._plans = plans

    async def get(self, tenant_id: str) -> TenantPlan:
        """The tenant's plan, or the default."""
        return _plan_of(await self._plans.get(tenant_id))

    async def get_many(self, tenant_ids: Collection[str]) -> dict[str, TenantPlan]:
        """The plan of each tenant, or the default."""
        stored = {document["_id"]: document for document in await self._plans.get_many(list(tenant_ids))}
        return {tenant_id: _plan_of(stored.get(tenant_id)) for tenant_id in tenant_ids}

    async def set(self, tenant_id: str, change: PlanChange, *, if_unset: bool = False) -> TenantPlan:
        """Sets the plan, or with `if_unset` only where none was set. Returns the plan that is stored afterwards."""
        body = change.to_document() | {"changedAt": format_utc(now_utc())}
        if if_unset:
            stored, _ = await self._plans.insert_if_absent({"_id": tenant_id, "version": 1, **body})
            return _plan_of(stored)
        update = {"$set": body, "$inc": {"version": 1}}
        try:
            updated = await self._plans.find_one_and_update({"_id": tenant_id}, update, upsert=True)
        except DuplicateKey:  # another process inserted it at the same time: now there is a plan to change
            updated = await self._plans.find_one_and_update({"_id": tenant_id}, update)
        return _plan_of(updated)


def _plan_of(document: dict[str, Any] | None) -> TenantPlan:
    if document is None:
        return TenantPlan()
    overrides = {Meter(meter): limit for meter, limit in document.get("overrides", {}).items()}
    return TenantPlan(Plan(document["plan"]), overrides, document["version"])
