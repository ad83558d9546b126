"""Internal HTTP: what is counted, for the services that keep records until it is, and for the gateway."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from services.usage.counting.ledger_store import LedgerStore
from services.usage.counting.stats import RangeMakesNoSense, range_of_days, tenant_stats
from shared.contracts import problems
from shared.contracts.contract import Contract, now_utc
from shared.contracts.internal_http import EventIds
from shared.contracts.upgrade_http import FieldProblem
from shared.contracts.usage import GroupBy, UtcDay
from shared.service.problems import problem_response

MAX_EVENT_IDS = 10_000


def usage_routes(ledger: LedgerStore) -> APIRouter:
    """The routes under `/internal`; the caller names the tenant."""
    router = APIRouter(prefix="/internal")

    @router.post("/events/missing")
    async def missing(question: EventIds) -> Response:
        if len(question.event_ids) > MAX_EVENT_IDS:
            return problem_response(problems.INVALID_REQUEST, f"at most {MAX_EVENT_IDS} event ids")
        return _json(EventIds(event_ids=await ledger.missing(question.event_ids)))

    @router.get("/tenants/{tenant_id}/counters")
    async def counters(tenant_id: str, period: Annotated[str, Query(pattern=r"^\d{4}-(0[1-9]|1[0-2])$")]) -> Response:
        return _json(await ledger.counters(tenant_id, period))

    @router.get("/tenants/{tenant_id}/stats")
    async def stats(
        tenant_id: str,
        from_day: Annotated[UtcDay | None, Query(alias="from")] = None,
        to_day: Annotated[UtcDay | None, Query(alias="to")] = None,
        group_by: Annotated[GroupBy | None, Query(alias="groupBy")] = None,
    ) -> Response:
        try:
            first, last = range_of_days(from_day, to_day, now_utc().date())
        except RangeMakesNoSense as error:
            wrong = FieldProblem(field=error.field, detail=str(error))
            return problem_response(problems.INVALID_REQUEST, "The range makes no sense.", errors=[wrong])
        return _json(await tenant_stats(ledger, tenant_id, first, last, group_by))

    return router


def _json(body: Contract) -> Response:
    return Response(body.to_json(), media_type="application/json")
