"""Internal HTTP routes for a tenant's plan, its quota, and which events its counters include."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Response

from services.usage.counting.count_batch import OnCountersRaised
from services.usage.counting.increments import CounterKey
from services.usage.counting.ledger_store import LedgerStore
from services.usage.counting.routes import MAX_EVENT_IDS, Period, json_response
from services.usage.plans.plans import PlanStore, quota_of
from shared.contracts import problems
from shared.contracts.contract import now_utc, period_of
from shared.contracts.internal_http import EventIds
from shared.contracts.quota import PlanChange, TenantStanding
from shared.service.problems import problem_response

_STANDING_ATTEMPTS = 20
_PAUSE_SECONDS = 0.01


def plan_routes(ledger: LedgerStore, plans: PlanStore, announce_reached: OnCountersRaised) -> APIRouter:
    """The routes under `/internal/tenants/{tenant_id}`. The tenant is trusted: only services call them.

    `announce_reached` is awaited with the counters whose limits have changed. If it fails, so does the request, which
    the caller then repeats.
    """
    router = APIRouter(prefix="/internal/tenants/{tenant_id}")

    @router.get("/quota")
    async def quota(tenant_id: str, period: Period) -> Response:
        counters = await ledger.counters(tenant_id, period)
        return json_response(quota_of(tenant_id, period, await plans.get(tenant_id), counters))

    @router.post("/standing")
    async def standing(
        tenant_id: str, period: Period, question: EventIds, as_of: Annotated[int | None, Query(alias="asOf")] = None
    ) -> Response:
        if len(question.event_ids) > MAX_EVENT_IDS:
            return problem_response(problems.INVALID_REQUEST, f"at most {MAX_EVENT_IDS} event ids")
        for _ in range(_STANDING_ATTEMPTS):
            found = await ledger.standing(tenant_id, period, question.event_ids, as_of)
            if found is not None:
                quota = quota_of(tenant_id, period, await plans.get(tenant_id), found.counters)
                return json_response(TenantStanding(quota=quota, as_of=found.as_of, missing=found.missing))
            await asyncio.sleep(_PAUSE_SECONDS)
        return problem_response(problems.UNAVAILABLE, "the counters change all the time", headers={"Retry-After": "1"})

    @router.put("/plan")
    async def set_plan(
        tenant_id: str, change: PlanChange, if_unset: Annotated[bool, Query(alias="ifUnset")] = False
    ) -> Response:
        plan = await plans.set(tenant_id, change, if_unset=if_unset)
        period = period_of(now_utc())
        await announce_reached([CounterKey(tenant_id, period)])
        return json_response(quota_of(tenant_id, period, plan, await ledger.counters(tenant_id, period)))

    return router
