"""Internal HTTP routes for counted usage: events that are missing in the ledger, tenant counters, statistics."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from services.usage.counting.ledger_store import LedgerStore
from services.usage.counting.stats import InvalidRange, requested_range, tenant_stats
from shared.contracts import problems
from shared.contracts.contract import Contract, now_utc
from shared.contracts.internal_http import EventIds
from shared.contracts.upgrade_http import FieldProblem
from shared.contracts.usage import GroupBy, UtcDay
from shared.service.problems import problem_response

MAX_EVENT_IDS = 10_000

Period = Annotated[str, Query(pattern=r"^\d{4}-(0[1-9]|1[0-2])$")]


def usage_routes(ledger: LedgerStore) -> APIRouter:
    """The routes under `/internal`. The tenant in the path is trusted: only services call them."""
    router = APIRouter(prefix="/internal")

    @router.post("/events/missing")
    async def missing(question: EventIds) -> Response:
        if len(question.event_ids) > MAX_EVENT_IDS:
            return problem_response(problems.INVALID_REQUEST, f"at most {MAX_EVENT_IDS} event ids")
        return json_response(EventIds(event_ids=await ledger.missing(question.event_ids)))

    @router.get("/tenants/{tenant_id}/counters")
    async def counters(tenant_id: str, period: Period) -> Response:
        return json_response(await ledger.counters(tenant_id, period))

    @router.get("/tenants/{tenant_id}/stats")
    async def stats(
        tenant_id: str,
        from_day: Annotated[UtcDay | None, Query(alias="from")] = None,
        to_day: Annotated[UtcDay | None, Query(alias="to")] = None,
        group_by: Annotated[GroupBy | None, Query(alias="groupBy")] = None,
    ) -> Response:
        try:
            first, last = requested_range(from_day, to_day, now_utc().date())
        except InvalidRange as error:
            wrong = FieldProblem(field=error.field, detail=str(error))
            return problem_response(problems.INVALID_REQUEST, "The range makes no sense.", errors=[wrong])
        return json_response(await tenant_stats(ledger, tenant_id, first, last, group_by))

    return router


def json_response(body: Contract) -> Response:
    return Response(body.to_json(), media_type="application/json")
