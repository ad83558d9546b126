"""Internal HTTP: erasure, for the gateway. The caller names the tenant and reaches nothing of another."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Response

from services.summarizer.summary_cache import StoredSummaryCache
from shared.contracts.problems import UNAVAILABLE
from shared.messaging.outbox import FactOutbox
from shared.messaging.recorded_stage import erase_output
from shared.observability.service_http import problem_response
from shared.storage.documents import StorageUnavailable


def erasure_routes(cache: StoredSummaryCache, outputs: FactOutbox) -> APIRouter:
    """The routes under `/internal/upgrades`."""
    router = APIRouter(prefix="/internal/upgrades")

    @router.delete("/{upgrade_id}")
    async def erase(upgrade_id: str, tenant_id: Annotated[str, Query(alias="tenantId")]) -> Response:
        """204: no summary of it is left, neither recorded nor cached. 404: there was none."""
        try:
            cached = await cache.erase(tenant_id, upgrade_id)
            recorded = await erase_output(outputs, tenant_id, upgrade_id)
        except StorageUnavailable:
            return problem_response(UNAVAILABLE, headers={"Retry-After": "2"})
        if not cached and not recorded:
            raise HTTPException(404)
        return Response(status_code=204)

    return router
