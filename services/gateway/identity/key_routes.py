"""The public routes of API keys."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response

from services.gateway.http.bodies import json_body, json_response, read_json
from services.gateway.http.idempotency import IdempotentCreations
from services.gateway.http.pages import DEFAULT_LIMIT, Cursor, Limit, first_page, read_cursor
from services.gateway.http.problems import ProblemError, invalid_field
from services.gateway.identity.api_keys import ApiKeys
from services.gateway.identity.audit import Action, Audit, author_of
from services.gateway.identity.caller import Role, scope_of
from services.gateway.identity.roles import Admin, confirmed, forbidden
from services.gateway.identity.workspace_routes import domain_errors_as_problems
from shared.contracts.contract import is_uuid, now_utc
from shared.contracts.problems import NOT_FOUND
from shared.contracts.workspaces_http import KeyPage, KeyView, NewKey, NewKeyView

KeyId = Annotated[str, Path(alias="id")]


class KeyRoutes:
    """API keys of the caller's workspace. `forget` empties the cache of identified callers after a revocation."""

    def __init__(
        self, *, keys: ApiKeys, audit: Audit, creations: IdempotentCreations, forget: Callable[[], None]
    ) -> None:
        self._keys = keys
        self._audit = audit
        self._creations = creations
        self._forget = forget

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/api/keys", tags=["keys"])
        router.add_api_route(
            "",
            self.create,
            methods=["POST"],
            status_code=201,
            response_model=NewKeyView,
            summary="Create an API key",
            openapi_extra=json_body(NewKey),
        )
        router.add_api_route("", self.page, methods=["GET"], response_model=KeyPage, summary="List API keys")
        router.add_api_route("/{id}", self.revoke, methods=["DELETE"], status_code=204, summary="Revoke an API key")
        return router

    async def create(self, request: Request, caller: Admin) -> Response:
        """Creates a key with at most the caller's role. The plain text, `key`, is in this answer and nowhere else."""
        body = await read_json(NewKey, request)
        caller = await confirmed(request)
        if not caller.role.allows(Role(body.role)):
            raise forbidden(Role(body.role))

        async def create(key_id: str) -> NewKeyView:
            # Checked only for the first request: a repeat gets its answer also when the key has expired since.
            _require_future(body.expires_at)
            details = {"name": body.name, "role": body.role}
            async with self._audit.change(
                caller.tenant_id, author_of(request, caller), Action.KEY_CREATED, key_id, details
            ):
                key, plain = await self._keys.create(
                    caller, key_id=key_id, name=body.name, role=Role(body.role), expires_at=body.expires_at
                )
            return NewKeyView(**key.view().model_dump(), key=plain)

        with domain_errors_as_problems():
            answer, headers = await self._creations.create(request, scope_of(caller), "keys", body, create)
        location = f"/api/keys/{KeyView.model_validate_json(answer).id}"
        return json_response(answer, 201, headers | {"Location": location})

    async def page(self, caller: Admin, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Response:
        """The workspace's keys, newest first, without their plain text."""
        before = read_cursor(cursor)
        with domain_errors_as_problems():
            keys = await self._keys.page(caller.tenant_id, limit=limit + 1, before=before)
        page, next_cursor = first_page(keys, limit, lambda key: key.id)
        return json_response(KeyPage(items=[key.view() for key in page], next_cursor=next_cursor).to_json())

    async def revoke(self, request: Request, caller: Admin, key_id: KeyId) -> Response:
        """Revokes a key of at most the caller's role. It is refused everywhere within 5 s."""
        author = author_of(request, caller)
        with domain_errors_as_problems():
            key = await self._keys.get(caller.tenant_id, key_id.lower()) if is_uuid(key_id) else None
            if key is None:
                raise _no_such_key()
            details = {"name": key.name, "role": key.role.value}
            async with self._audit.change(caller.tenant_id, author, Action.KEY_REVOKED, key.id, details):
                if not await self._keys.revoke(caller, key):
                    raise _no_such_key()
        self._forget()
        return Response(status_code=204)


def _require_future(expires_at: datetime | None) -> None:
    if expires_at is not None and expires_at <= now_utc():
        raise invalid_field("expiresAt", "Must be in the future.")


def _no_such_key() -> ProblemError:
    return ProblemError(NOT_FOUND, "There is no such key.")
