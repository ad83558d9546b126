"""Public routes that list, read, follow and erase upgrades."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response, StreamingResponse

from services.gateway.http.pages import DEFAULT_LIMIT, Cursor, Limit, read_cursor, write_cursor
from services.gateway.http.problems import ProblemError, invalid_field, storage_errors_as_problems, unavailable
from services.gateway.identity.audit import Action, Audit, author_of
from services.gateway.identity.caller import Caller
from services.gateway.identity.roles import Admin, Member, Viewer, confirmed
from services.gateway.upgrades.accepted_record import AcceptedRecord
from services.gateway.upgrades.accepted_store import AcceptedStore
from services.gateway.upgrades.erasure import Erasure
from services.gateway.upgrades.event_stream import EventStreams
from services.gateway.upgrades.stage_clients import ResultsUnavailable, UpgradeResults
from services.gateway.upgrades.views import UpgradeListing, UpgradeViews
from shared.contracts.contract import is_uuid
from shared.contracts.problems import INVALID_HEADER, NOT_FOUND, UNAVAILABLE
from shared.contracts.upgrade_http import UpgradePage, UpgradeView
from shared.contracts.upgrade_results import COMPLETED_STEP, UpgradeStatus
from shared.privacy.sealing import Vault
from shared.storage.documents import StorageUnavailable

_MAX_USER_ID_LENGTH = 128
_LATER: dict[int | str, dict[str, Any]] = {
    202: {"description": "Nothing can be read any more; what is still on its way goes as soon as it arrives"}
}

UpgradeId = Annotated[str, Path(alias="id")]
UserId = Annotated[str, Path(alias="userId", description="the plain `userId` of the requests")]


class UpgradeRoutes:
    """Routes that read upgrades. An upgrade of another tenant is answered like an unknown one."""

    def __init__(
        self,
        *,
        store: AcceptedStore,
        results: UpgradeResults,
        views: UpgradeViews,
        listing: UpgradeListing,
        streams: EventStreams,
    ) -> None:
        self._store = store
        self._results = results
        self._views = views
        self._listing = listing
        self._streams = streams

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/api/upgrades", tags=["upgrades"])
        router.add_api_route("", self.page, methods=["GET"], response_model=UpgradePage, summary="List upgrades")
        router.add_api_route("/{id}", self.read, methods=["GET"], response_model=UpgradeView, summary="Read an upgrade")
        router.add_api_route(
            "/{id}/events",
            self.events,
            methods=["GET"],
            summary="Follow an upgrade (server-sent events)",
            responses={200: {"content": {"text/event-stream": {}}}},
            response_class=StreamingResponse,
        )
        return router

    async def page(
        self,
        caller: Viewer,
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
        status: UpgradeStatus | None = None,
        user_id: Annotated[str | None, Query(alias="userId", min_length=1, max_length=_MAX_USER_ID_LENGTH)] = None,
    ) -> Response:
        """The tenant's upgrades, newest first."""
        before = read_cursor(cursor)
        try:
            page = await self._listing.page(
                caller.tenant_id, limit=limit, before=before, status=status, user_id=user_id
            )
        except (StorageUnavailable, ResultsUnavailable):
            raise unavailable() from None
        next_cursor = write_cursor(page.last_id) if page.last_id else None
        return _json(UpgradePage(items=page.items, next_cursor=next_cursor).to_json())

    async def read(self, caller: Viewer, upgrade_id: UpgradeId) -> Response:
        """One upgrade in any status."""
        record = await self._record(caller, upgrade_id)
        try:
            result = await self._results.find(record.upgrade_id)
        except ResultsUnavailable:
            if record.has_ended():
                raise unavailable("The upgrade has ended; its result cannot be read right now.") from None
            result = None
        if result is None and record.has_ended():
            raise _no_such_upgrade()
        return _json(self._views.of(record, result).to_json())

    async def events(self, request: Request, caller: Viewer, upgrade_id: UpgradeId) -> Response:
        """`accepted`, `stage` and `completed` events as they happen; with `Last-Event-ID`, those after that event."""
        record = await self._record(caller, upgrade_id)
        last = request.headers.get("last-event-id", "").strip() or "0"
        if not (last.isascii() and last.isdigit() and len(last) < 10) or int(last) > COMPLETED_STEP:
            raise ProblemError(INVALID_HEADER, "Last-Event-ID must be the id of an event of this upgrade.")

        async def readable(*, when_unknown: bool) -> bool:
            try:
                await self._record(await confirmed(request), upgrade_id)
            except ProblemError as error:
                return when_unknown and error.problem is UNAVAILABLE
            return True

        return StreamingResponse(
            self._streams.follow(record, int(last), readable),
            media_type="text/event-stream",
            headers={"X-Accel-Buffering": "no"},
        )

    async def _record(self, caller: Caller, upgrade_id: str) -> AcceptedRecord:
        if not is_uuid(upgrade_id):
            raise _no_such_upgrade()
        with storage_errors_as_problems():
            record = await self._store.find(caller.tenant_id, upgrade_id.lower())
        if record is None or record.erased_at is not None:
            raise _no_such_upgrade()
        return record


class ErasureRoutes:
    """Routes that erase upgrades: 204 when all content is gone, 202 when the rest is erased in the background.

    After either answer the upgrades cannot be read any more.
    """

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
        """Erases prompt, conversation, result and placeholder map; what the upgrade used stays counted."""
        author = author_of(request, caller)
        with storage_errors_as_problems():
            record = await self._store.find(caller.tenant_id, upgrade_id.lower()) if is_uuid(upgrade_id) else None
            if record is None or (record.erased_at is not None and record.erasure_since is None):
                raise _no_such_upgrade()
            async with self._audit.change(caller.tenant_id, author, Action.UPGRADE_ERASED, record.upgrade_id):
                gone = await self._erasure.upgrade(record)
        return Response(status_code=204 if gone else 202)

    async def user(self, request: Request, caller: Admin, user_id: UserId) -> Response:
        """Erases all upgrades with this `userId`. The answer is the same when there are none."""
        if not 1 <= len(user_id) <= _MAX_USER_ID_LENGTH:
            raise invalid_field("userId", f"Must have 1 to {_MAX_USER_ID_LENGTH} characters.")
        user_ref = self._vault.user_ref(caller.tenant_id, user_id)
        with storage_errors_as_problems():
            async with self._audit.change(caller.tenant_id, author_of(request, caller), Action.USER_ERASED, user_ref):
                gone = await self._erasure.of_tenant(caller.tenant_id, user_ref)
        return Response(status_code=204 if gone else 202)


def _no_such_upgrade() -> ProblemError:
    return ProblemError(NOT_FOUND, "There is no such upgrade.")


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
