"""The public routes that erase: one upgrade, or all that a user of the tenant has sent."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response

from services.gateway.api.authors import author_of
from services.gateway.api.roles import Admin, Member
from services.gateway.api.upgrade_reads import UpgradeId, no_such_upgrade, unavailable
from services.gateway.identity.audit import Action, Audit
from services.gateway.problems import ProblemError
from services.gateway.upgrades.accepted_store import AcceptedStore
from services.gateway.upgrades.erasure import Erasure
from shared.contracts.ids import is_uuid
from shared.contracts.problems import INVALID_REQUEST
from shared.contracts.upgrade_http import FieldProblem
from shared.privacy.sealing import Vault
from shared.storage.documents import StorageUnavailable

_LONGEST_USER_ID = 128
_LATER: dict[int | str, dict[str, Any]] = {
    202: {"description": "Nothing can be read any more; what is still on its way goes as soon as it arrives"}
}
UserId = Annotated[str, Path(alias="userId", description="the plain `userId` of the requests")]


class ErasureRoutes:
    """204 when everything is gone, 202 when the rest goes by itself; what was erased is not there in either case."""

    def __init__(self, *, store: AcceptedStore, erasure: Erasure, audit: Audit, vault: Vault) -> None:
        self._store = store
        self._erasure = erasure
        self._audit = audit
        self._vault = vault

    def router(self) -> APIRouter:
        router = APIRouter()
        router.add_api_route(
            "/api/upgrades/{id}",
            self.upgrade,
            methods=["DELETE"],
            status_code=204,
            tags=["upgrades"],
            summary="Erase an upgrade",
            responses=_LATER,
        )
        router.add_api_route(
            "/api/users/{userId:path}",
            self.user,
            methods=["DELETE"],
            status_code=204,
            tags=["upgrades"],
            summary="Erase all upgrades of a user",
            responses=_LATER,
        )
        return router

    async def upgrade(self, request: Request, caller: Member, upgrade_id: UpgradeId) -> Response:
        """Prompt, conversation, result and placeholder map are gone; what it used stays counted."""
        author = author_of(request, caller)
        try:
            record = await self._store.find(caller.tenant_id, upgrade_id.lower()) if is_uuid(upgrade_id) else None
            if record is None or (record.erased_at is not None and record.erasure_since is None):
                raise no_such_upgrade()
            async with self._audit.change(caller.tenant_id, author, Action.UPGRADE_ERASED, record.upgrade_id):
                gone = await self._erasure.upgrade(record)
        except StorageUnavailable:
            raise unavailable() from None
        return Response(status_code=204 if gone else 202)

    async def user(self, request: Request, caller: Admin, user_id: UserId) -> Response:
        """All upgrades that came with this `userId`. The answer is the same when there are none."""
        if not 1 <= len(user_id) <= _LONGEST_USER_ID:
            problem = FieldProblem(field="userId", detail=f"Must have 1 to {_LONGEST_USER_ID} characters.")
            raise ProblemError(INVALID_REQUEST, "One or more fields are not valid.", errors=[problem])
        user_ref = self._vault.user_ref(caller.tenant_id, user_id)
        try:
            async with self._audit.change(caller.tenant_id, author_of(request, caller), Action.USER_ERASED, user_ref):
                gone = await self._erasure.of_tenant(caller.tenant_id, user_ref)
        except StorageUnavailable:
            raise unavailable() from None
        return Response(status_code=204 if gone else 202)
