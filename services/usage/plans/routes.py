"""Internal HTTP: a tenant's plan, and how it stands against it."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Response

from services.usage.counting.count_batch import Notice
from services.usage.counting.increments import CounterKey
from services.usage.counting.ledger_store import LedgerStore
from services.usage.plans.plans import Plans, quota_of
from shared.contracts import problems
from shared.contracts.contract import Contract, now_utc, period_of
from shared.contracts.internal_http import EventIds
from shared.contracts.quota import PlanChange, TenantStanding
from shared.service.problems import problem_response

MAX_EVENT_IDS = 10_000
_STANDING_ATTEMPTS = 20
_PAUSE_SECONDS = 0.01

Period = Annotated[str, Query(pattern=r"^\d{4}-(0[1-9]|1[0-2])$")]


def plan_routes(ledger: LedgerStore, plans: Plans, notice: Notice | None = None) -> APIRouter:
    """The routes under `/internal`; the caller names the tenant.

    `notice` is told of the counters that have other limits now; when it cannot do its work, the change is to be asked
    for again.
    """
    router = APIRouter(prefix="/internal/tenants/{tenant_id}")

    @router.get("/quota")
    async def quota(tenant_id: str, period: Period) -> Response:
        counters = await ledger.counters(tenant_id, period)
        return _json(quota_of(tenant_id, period, await plans.of(tenant_id), counters))

    @router.post("/standing")
    async def standing(
        tenant_id: str, period: Period, question: EventIds, as_of: Annotated[int | None, Query(alias="asOf")] = None
    ) -> Response:
        """The quota, and which of the tenant's events its counters lack, or lacked as of a version of a moment ago."""
        if len(question.event_ids) > MAX_EVENT_IDS:
            return problem_response(problems.INVALID_REQUEST, f"at most {MAX_EVENT_IDS} event ids")
        for _ in range(_STANDING_ATTEMPTS):
            found = await ledger.standing(tenant_id, period, question.event_ids, as_of)
            if found is not None:
                quota = quota_of(tenant_id, period, await plans.of(tenant_id), found.counters)
                return _json(TenantStanding(quota=quota, as_of=found.as_of, missing=found.missing))
            await asyncio.sleep(_PAUSE_SECONDS)
        return problem_response(problems.UNAVAILABLE, "the counters change all the time", headers={"Retry-After": "1"})

    @router.put("/plan")
    async def set_plan(
        tenant_id: str, change: PlanChange, if_unset: Annotated[bool, Query(alias="ifUnset")] = False
    ) -> Response:
        record = await plans.set(tenant_id, change, if_unset=if_unset)
        period = period_of(now_utc())
        if notice is not None:
            await notice([CounterKey(tenant_id, period)])
        return _json(quota_of(tenant_id, period, record, await ledger.counters(tenant_id, period)))

    return router


def _json(body: Contract) -> Response:
    return Response(body.to_json(), media_type="application/json")
