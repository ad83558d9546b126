"""Routes that read a tenant's quota and statistics, and the internal routes with which rag holds embeddings."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import Response

from services.gateway.http.problems import ProblemError, storage_errors_as_problems, unavailable
from services.gateway.identity.roles import Viewer
from services.gateway.quota.admission import MeterState, QuotaState
from services.gateway.quota.document_holds import DocumentHolds
from services.gateway.quota.quota_admissions import QuotaAdmissions
from services.gateway.quota.usage_client import RangeRefused, UsageClient, UsageUnavailable
from shared.contracts.contract import now_utc, period_of
from shared.contracts.problems import INVALID_REQUEST
from shared.contracts.quota import EmbeddingsHold, EmbeddingsHoldEnd, MetersView, MeterView, QuotaPeriod, QuotaView
from shared.contracts.usage import GroupBy, TenantStats, UtcDay

_DAY_FORMAT = ". `YYYY-MM-DD`, or its midnight in UTC, `YYYY-MM-DDT00:00:00Z`"
_FIRST = "first UTC day; this month's, or that of `to`" + _DAY_FORMAT
_AFTER = "UTC day after the last; the end of this month" + _DAY_FORMAT

FromDay = Annotated[UtcDay | None, Query(alias="from", description=_FIRST)]
ToDay = Annotated[UtcDay | None, Query(alias="to", description=_AFTER)]
Group = Annotated[GroupBy | None, Query(alias="groupBy", description="give the same numbers by group as well")]


class QuotaRoutes:
    """The public route of quotas."""

    def __init__(self, admissions: QuotaAdmissions) -> None:
        self._admissions = admissions

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/api/quota", tags=["quota"])
        router.add_api_route("", self.read, methods=["GET"], response_model=QuotaView, summary="Read the quota")
        return router

    async def read(self, caller: Viewer) -> Response:
        """What the tenant may use this month, has used, and holds for what is running."""
        period = period_of(now_utc())
        state = await self._admissions.quota(caller.tenant_id, period)
        return Response(_quota_view(state, period).to_json(), media_type="application/json")


class HoldRoutes:
    """Internal routes: holds that rag takes before it embeds a document or a query."""

    def __init__(self, holds: DocumentHolds) -> None:
        self._holds = holds

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/internal/holds/embeddings", include_in_schema=False)
        router.add_api_route("", self.take, methods=["POST"], status_code=204)
        router.add_api_route("/{hold_id}/end", self.end, methods=["POST"], status_code=204)
        return router

    async def take(self, request: EmbeddingsHold) -> Response:
        """204 when the hold is taken, now or before; 429 `quota_exceeded` without room."""
        with storage_errors_as_problems():
            await self._holds.take(request)
        return Response(status_code=204)

    async def end(self, hold_id: str, ended: EmbeddingsHoldEnd) -> Response:
        """204, also for a hold that is unknown or has ended."""
        with storage_errors_as_problems():
            await self._holds.end(hold_id, ended)
        return Response(status_code=204)


class StatsRoutes:
    """The public route of statistics: what the caller's tenant used, and how its upgrades ended."""

    def __init__(self, usage: UsageClient) -> None:
        self._usage = usage

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/api/stats", tags=["quota and stats"])
        router.add_api_route("", self.read, methods=["GET"], response_model=TenantStats, summary="Read statistics")
        return router

    async def read(
        self, caller: Viewer, from_day: FromDay = None, to_day: ToDay = None, group_by: Group = None
    ) -> Response:
        """Totals of the days from `from` to before `to`, and the same by day, component or user."""
        try:
            body = await self._usage.stats(caller.tenant_id, from_day, to_day, group_by)
        except RangeRefused as refused:
            raise ProblemError(INVALID_REQUEST, "The range makes no sense.", errors=refused.errors) from None
        except UsageUnavailable:
            raise unavailable("Statistics cannot be read right now.") from None
        # Passed on unparsed: usage wrote it by the contract, and parsing would cost more than the rest of the request.
        return Response(body, media_type="application/json")


def _quota_view(state: QuotaState, period: str) -> QuotaView:
    meters = MetersView(**{meter.meter.value: _meter(meter) for meter in state.meters})
    return QuotaView(plan=state.plan, period=QuotaPeriod.of(period), meters=meters)


def _meter(state: MeterState) -> MeterView:
    return MeterView(limit=state.limit, used=state.used, held=state.held, remaining=state.remaining)
