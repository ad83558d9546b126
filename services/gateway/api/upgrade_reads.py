"""The public routes of upgrades, except for the one that makes them."""

import base64
import binascii
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response, StreamingResponse

from services.gateway.api.roles import Viewer, confirmed
from services.gateway.identity.caller import Caller
from services.gateway.problems import ProblemError
from services.gateway.siblings.upgrader import ResultsUnavailable, UpgradeResults
from services.gateway.upgrades.accepted_record import AcceptedRecord
from services.gateway.upgrades.accepted_store import AcceptedStore
from services.gateway.upgrades.event_stream import EventStreams
from services.gateway.upgrades.listing import UpgradeListing
from services.gateway.upgrades.view import UpgradeViews
from shared.contracts.ids import is_uuid
from shared.contracts.problems import INVALID_HEADER, INVALID_REQUEST, NOT_FOUND, UNAVAILABLE
from shared.contracts.upgrade_events import COMPLETED_STEP
from shared.contracts.upgrade_http import FieldProblem, UpgradePage, UpgradeView
from shared.contracts.upgrade_results import UpgradeStatus
from shared.storage.documents import StorageUnavailable

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="items in a page")]
UpgradeId = Annotated[str, Path(alias="id")]
Cursor = Annotated[str | None, Query(max_length=200, description="`nextCursor` of the page before")]


def unavailable(detail: str = "Try again.") -> ProblemError:
    return ProblemError(UNAVAILABLE, detail, headers={"Retry-After": "2"})


def write_cursor(last_id: str) -> str:
    """The opaque cursor of a page that ended with that id."""
    return base64.urlsafe_b64encode(last_id.encode()).decode().rstrip("=")


def read_cursor(cursor: str | None) -> str | None:
    """The id that a cursor stands for. Raises ProblemError (invalid_request) for one that no page ever had."""
    if cursor is None:
        return None
    try:
        last_id = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        last_id = ""
    if not is_uuid(last_id):
        problem = FieldProblem(field="cursor", detail="This is not a cursor of this list.")
        raise ProblemError(INVALID_REQUEST, "One or more fields are not valid.", errors=[problem])
    return last_id


class UpgradeRoutes:
    """Reading upgrades. What another tenant owns does not exist."""

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
        user_id: Annotated[str | None, Query(alias="userId", min_length=1, max_length=128)] = None,
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
        """One upgrade, whatever its status."""
        record = await self._record(caller, upgrade_id)
        try:
            result = await self._results.find(record.upgrade_id)
        except ResultsUnavailable:
            if record.has_ended():
                raise unavailable("The upgrade has ended; its result cannot be read right now.") from None
            result = None
        if result is None and record.has_ended():
            raise no_such_upgrade()
        return _json(self._views.of(record, result).to_json())

    async def events(self, request: Request, caller: Viewer, upgrade_id: UpgradeId) -> Response:
        """`accepted`, `stage` and `completed` as they happen; `Last-Event-ID` goes on after that event."""
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
            raise no_such_upgrade()
        try:
            record = await self._store.find(caller.tenant_id, upgrade_id.lower())
        except StorageUnavailable:
            raise unavailable() from None
        if record is None or record.erased_at is not None:
            raise no_such_upgrade()
        return record


def no_such_upgrade() -> ProblemError:
    return ProblemError(NOT_FOUND, "There is no such upgrade.")


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
