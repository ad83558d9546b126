"""Plans of tenants as documents, one for each tenant that was given one."""

import collections.abc
from dataclasses import dataclass, field
from typing import Any

from services.usage.plans import PlanRecord
from shared.contracts.contract import format_utc, now_utc
from shared.contracts.plans import Meter, Plan, PlanChange
from shared.storage.documents import Collection, CollectionSpec, DuplicateKey

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
