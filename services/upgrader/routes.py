"""Internal HTTP: the results of ended upgrades, for the gateway."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Response

from services.upgrader.results import Results
from shared.contracts.internal_http import ResultLookup, ResultPage
from shared.contracts.upgrade_results import UpgradeResult

MAX_LOOKUP = 500


def result_routes(results: Results) -> APIRouter:
    """The routes under `/internal/upgrades`; the caller names the tenant, and sees nothing of another."""
    router = APIRouter(prefix="/internal/upgrades")

    @router.get("/{upgrade_id}")
    async def read(upgrade_id: str, tenant_id: Annotated[str, Query(alias="tenantId")]) -> Response:
        result = await results.find(upgrade_id)
        if result is None or result.tenant_id != tenant_id:
            raise HTTPException(404)
        return _json(result.to_json())

    @router.post("/lookup")
    async def lookup(question: ResultLookup) -> Response:
        return _json(_page(await results.among(question.upgrade_ids[:MAX_LOOKUP])))

    @router.get("")
    async def page(
        tenant_id: Annotated[str, Query(alias="tenantId")],
        status: str | None = None,
        user_ref: Annotated[str | None, Query(alias="userRef")] = None,
        before: str | None = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> Response:
        found = await results.of_tenant(tenant_id, status=status, user_ref=user_ref, before=before, limit=limit)
        return _json(_page(found))

    @router.delete("/{upgrade_id}")
    async def erase(upgrade_id: str, tenant_id: Annotated[str, Query(alias="tenantId")]) -> Response:
        if not await results.erase(tenant_id, upgrade_id):
            raise HTTPException(404)
        return Response(status_code=204)

    return router


def _page(found: list[UpgradeResult]) -> bytes:
    return ResultPage(items=found).to_json()


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
