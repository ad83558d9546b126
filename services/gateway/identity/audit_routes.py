"""The public route of the audit."""

from fastapi import APIRouter
from fastapi.responses import Response

from services.gateway.http.pages import DEFAULT_LIMIT, Cursor, Limit, read_cursor, unavailable, write_cursor
from services.gateway.identity.audit import AuditTrail
from services.gateway.identity.roles import Admin
from services.gateway.identity.workspace_routes import json_answer
from shared.contracts.workspaces_http import AuditPage
from shared.storage.documents import StorageUnavailable


class AuditRoutes:
    """Reading the audit of the caller's workspace."""

    def __init__(self, trail: AuditTrail) -> None:
        self._trail = trail

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/api/audit", tags=["audit"])
        router.add_api_route("", self.page, methods=["GET"], response_model=AuditPage, summary="Who changed what")
        return router

    async def page(self, caller: Admin, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Response:
        """Changes of keys, members, workspaces, plans, prompts and documents, and erasures, newest first."""
        before = read_cursor(cursor)
        try:
            entries = await self._trail.page(caller.tenant_id, limit=limit + 1, before=before)
        except StorageUnavailable:
            raise unavailable() from None
        items = entries[:limit]
        next_cursor = write_cursor(items[-1].id) if len(entries) > limit else None
        return json_answer(AuditPage(items=items, next_cursor=next_cursor).to_json())
