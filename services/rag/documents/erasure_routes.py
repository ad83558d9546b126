"""Internal HTTP: erasure of upgrades, for the gateway. The caller names the tenant and reaches nothing of another."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Response

from services.rag.documents.store import RagStore
from shared.contracts.problems import UNAVAILABLE
from shared.messaging.publish.outbox import FactOutbox
from shared.service.problems import problem_response
from shared.service.recorded_stage import erase_output
from shared.storage.documents import StorageUnavailable


def erasure_routes(store: RagStore, outputs: FactOutbox) -> APIRouter:
    """The routes under `/internal/upgrades`."""
    router = APIRouter(prefix="/internal/upgrades")

    @router.delete("/{upgrade_id}")
    async def erase(upgrade_id: str, tenant_id: Annotated[str, Query(alias="tenantId")]) -> Response:
        """204: nothing that was retrieved or embedded for it is left. 404: there was nothing."""
        try:
            vectors = await store.embeddings.delete_many({"upgradeId": upgrade_id, "tenantId": tenant_id})
            recorded = await erase_output(outputs, tenant_id, upgrade_id)
        except StorageUnavailable:
            return problem_response(UNAVAILABLE, headers={"Retry-After": "2"})
        if not vectors and not recorded:
            raise HTTPException(404)
        return Response(status_code=204)

    return router
