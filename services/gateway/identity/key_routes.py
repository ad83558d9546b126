"""The public routes of API keys."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response

from services.gateway.http.bodies import parse, read_body, require_json
from services.gateway.http.idempotency import OnceOnly
from services.gateway.http.pages import DEFAULT_LIMIT, Cursor, Limit, read_cursor, unavailable, write_cursor
from services.gateway.http.problems import ProblemError
from services.gateway.identity.api_keys import MAX_KEYS, ApiKeys, KeyNeedsRole, TooManyKeys
from services.gateway.identity.audit import Action, Audit, author_of
from services.gateway.identity.caller import Role, scope_of
from services.gateway.identity.roles import Admin, confirmed, forbidden
from services.gateway.identity.workspace_routes import MAX_BODY_BYTES, json_answer, json_body
from shared.contracts.contract import is_uuid, now_utc
from shared.contracts.problems import CONFLICT, INVALID_REQUEST, NOT_FOUND
from shared.contracts.upgrade_http import FieldProblem
from shared.contracts.workspaces_http import KeyPage, KeyView, NewKey, NewKeyView
from shared.storage.documents import StorageUnavailable

KeyId = Annotated[str, Path(alias="id")]


class KeyRoutes:
    """API keys of the caller's workspace. `forget` is called after a revocation, so that it counts here at once."""

    def __init__(self, *, keys: ApiKeys, audit: Audit, once: OnceOnly, forget: Callable[[], None]) -> None:
        self._keys = keys
        self._audit = audit
        self._once = once
        self._forget = forget

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/api/keys", tags=["keys"])
        router.add_api_route(
            "",
            self.create,
            methods=["POST"],
            status_code=201,
            response_model=NewKeyView,
            summary="Make an API key",
            openapi_extra=json_body(NewKey.__name__),
        )
        router.add_api_route("", self.page, methods=["GET"], response_model=KeyPage, summary="List API keys")
        router.add_api_route("/{id}", self.revoke, methods=["DELETE"], status_code=204, summary="Revoke an API key")
        return router

    async def create(self, request: Request, caller: Admin) -> Response:
        """The answer holds the key as `key`, once and never again. Its role is at most that of who makes it."""
        require_json(request)
        body = parse(NewKey, await read_body(request, MAX_BODY_BYTES))
        caller = await confirmed(request)
        if not caller.role.allows(Role(body.role)):
            raise forbidden(Role(body.role))

        async def create(key_id: str) -> NewKeyView:
            # Only here: by the time a request is repeated its key may have ended, and the answer is still the first.
            _require_future(body.expires_at)
            details = {"name": body.name, "role": body.role}
            async with self._audit.change(
                caller.tenant_id, author_of(request, caller), Action.KEY_CREATED, key_id, details
            ):
                key, plain = await self._keys.create(
                    caller, key_id=key_id, name=body.name, role=Role(body.role), expires_at=body.expires_at
                )
            return NewKeyView(**key.view().model_dump(), key=plain)

        try:
            answer, headers = await self._once.create(request, scope_of(caller), "keys", body, create)
        except TooManyKeys:
            raise ProblemError(CONFLICT, f"A workspace has at most {MAX_KEYS} keys.") from None
        except StorageUnavailable:
            raise unavailable() from None
        location = f"/api/keys/{KeyView.model_validate_json(answer).id}"
        return json_answer(answer, 201, headers | {"Location": location})

    async def page(self, caller: Admin, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Response:
        """The workspace's keys, newest first, without the keys themselves."""
        before = read_cursor(cursor)
        try:
            keys = await self._keys.page(caller.tenant_id, limit=limit + 1, before=before)
        except StorageUnavailable:
            raise unavailable() from None
        items = [key.view() for key in keys[:limit]]
        next_cursor = write_cursor(items[-1].id) if len(keys) > limit else None
        return json_answer(KeyPage(items=items, next_cursor=next_cursor).to_json())

    async def revoke(self, request: Request, caller: Admin, key_id: KeyId) -> Response:
        """Within 5 s nobody gets in with it, at any replica. A key above the caller's role is not theirs to revoke."""
        try:
            key = await self._keys.get(caller.tenant_id, key_id.lower()) if is_uuid(key_id) else None
            if key is None:
                raise _no_such_key()
            author = author_of(request, caller)
            async with self._audit.change(
                caller.tenant_id, author, Action.KEY_REVOKED, key.id, {"name": key.name, "role": key.role.value}
            ):
                if not await self._keys.revoke(caller, key):
                    raise _no_such_key()
        except KeyNeedsRole as needed:
            raise forbidden(needed.role) from None
        except StorageUnavailable:
            raise unavailable() from None
        self._forget()
        return Response(status_code=204)


def _require_future(expires_at: datetime | None) -> None:
    if expires_at is not None and expires_at <= now_utc():
        problem = FieldProblem(field="expiresAt", detail="Must be in the future.")
        raise ProblemError(INVALID_REQUEST, "One or more fields are not valid.", errors=[problem])


def _no_such_key() -> ProblemError:
    return ProblemError(NOT_FOUND, "There is no such key.")
