"""The public route of statistics. usage keeps the numbers; the gateway says whose they are."""

from datetime import date
from typing import Annotated, Protocol

from fastapi import APIRouter, Query
from fastapi.responses import Response

from services.gateway.api.roles import Viewer
from services.gateway.api.upgrade_reads import unavailable
from services.gateway.problems import ProblemError
from services.gateway.siblings.usage import RangeRefused, UsageUnavailable
from shared.contracts.problems import INVALID_REQUEST
from shared.contracts.stats import GroupBy, TenantStats, UtcDay

_WRITTEN = ". `YYYY-MM-DD`, or its midnight in UTC, `YYYY-MM-DDT00:00:00Z`"
_FIRST = "first UTC day; this month's, or that of `to`" + _WRITTEN
_AFTER = "UTC day after the last; the end of this month" + _WRITTEN

FromDay = Annotated[UtcDay | None, Query(alias="from", description=_FIRST)]
ToDay = Annotated[UtcDay | None, Query(alias="to", description=_AFTER)]
Group = Annotated[GroupBy | None, Query(alias="groupBy", description="give the same numbers by group as well")]


class Stats(Protocol):
    async def stats(self, tenant_id: str, from_day: date | None, to_day: date | None, group_by: str | None) -> bytes:
        """`TenantStats` as JSON. Raises UsageUnavailable, and RangeRefused."""


class StatsRoutes:
    """What the caller's tenant used and how its upgrades ended."""

    def __init__(self, usage: Stats) -> None:
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
        # usage wrote it by the contract: reading and writing it again would cost more than all the rest.
        return Response(body, media_type="application/json")
