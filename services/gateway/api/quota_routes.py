"""The route of quotas, and the internal one with which rag holds embeddings."""

from collections.abc import Callable
from datetime import datetime

from fastapi import APIRouter
from fastapi.responses import Response

from services.gateway.admission.document_holds import DocumentHolds
from services.gateway.admission.quota_admissions import QuotaAdmissions
from services.gateway.admission.terms import MeterState, QuotaState
from services.gateway.api.roles import Viewer
from services.gateway.api.upgrade_reads import unavailable
from shared.contracts.contract import now_utc, period_of
from shared.contracts.quota_events import QuotaPeriod
from shared.contracts.quota_http import EmbeddingsHold, EmbeddingsHoldEnd, MetersView, MeterView, QuotaView
from shared.storage.documents import StorageUnavailable


class QuotaRoutes:
    """Reading a quota."""

    def __init__(self, admissions: QuotaAdmissions, clock: Callable[[], datetime] = now_utc) -> None:
        self._admissions = admissions
        self._clock = clock

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/api/quota", tags=["quota"])
        router.add_api_route("", self.read, methods=["GET"], response_model=QuotaView, summary="Read the quota")
        return router

    async def read(self, caller: Viewer) -> Response:
        """What the tenant may use this month, has used, and holds for what is running."""
        period = period_of(self._clock())
        state = await self._admissions.quota(caller.tenant_id, period)
        return Response(quota_view(state, period).to_json(), media_type="application/json")


class HoldRoutes:
    """Holds that rag takes before it embeds a document. For services only."""

    def __init__(self, holds: DocumentHolds) -> None:
        self._holds = holds

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/internal/holds/embeddings", include_in_schema=False)
        router.add_api_route("", self.take, methods=["POST"], status_code=204)
        router.add_api_route("/{hold_id}/end", self.end, methods=["POST"], status_code=204)
        return router

    async def take(self, asked: EmbeddingsHold) -> Response:
        """204 with the hold, also when it was taken before; 429 `quota_exceeded` without."""
        try:
            await self._holds.take(asked)
        except StorageUnavailable:
            raise unavailable() from None
        return Response(status_code=204)

    async def end(self, hold_id: str, ended: EmbeddingsHoldEnd) -> Response:
        """204, also when there is no such hold, or not any more."""
        try:
            await self._holds.end(hold_id, ended)
        except StorageUnavailable:
            raise unavailable() from None
        return Response(status_code=204)


def quota_view(state: QuotaState, period: str) -> QuotaView:
    """A tenant's state as the public API shows it."""
    meters = MetersView(**{meter.meter.value: _meter(meter) for meter in state.meters})
    return QuotaView(plan=state.plan, period=QuotaPeriod.of(period), meters=meters)


def _meter(state: MeterState) -> MeterView:
    return MeterView(limit=state.limit, used=state.used, held=state.held, remaining=state.remaining)
