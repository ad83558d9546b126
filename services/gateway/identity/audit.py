"""The audit trail: who changed what, when and from where. An entry is written before its change is made, so that no
change lacks one.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from services.gateway.http.bodies import json_response
from services.gateway.http.client_address import client_address
from services.gateway.http.pages import DEFAULT_LIMIT, Cursor, Limit, first_page, read_cursor
from services.gateway.http.problems import changed_nothing, storage_errors_as_problems
from services.gateway.identity.caller import Caller
from services.gateway.identity.roles import Admin
from shared.contracts.contract import format_utc, new_id, now_utc
from shared.contracts.workspaces_http import AuditActor, AuditPage, AuditView
from shared.observability.logs import get_logger
from shared.service.problems import request_id_of
from shared.storage.documents import Collection, CollectionSpec, Index, StorageUnavailable

AUDIT = CollectionSpec(name="audit", indexes=(Index(fields=("tenantId", "_id")),))

_BEGUN, _DONE = "unfinished", "done"

log = get_logger(__name__)


class Action(StrEnum):
    """The kinds of audited changes."""

    WORKSPACE_CREATED = "workspace.created"
    WORKSPACE_DELETED = "workspace.deleted"
    MEMBER_ADDED = "member.added"
    MEMBER_CHANGED = "member.changed"
    MEMBER_REMOVED = "member.removed"
    KEY_CREATED = "key.created"
    KEY_REVOKED = "key.revoked"
    PLAN_CHANGED = "plan.changed"
    DOCUMENT_ADDED = "document.added"
    DOCUMENT_DELETED = "document.deleted"
    UPGRADE_ERASED = "upgrade.erased"
    USER_ERASED = "user.erased"
    PROMPT_CREATED = "prompt.created"
    PROMPT_ROLLED_OUT = "prompt.rolled-out"
    PROMPT_ROLLED_BACK = "prompt.rolled-back"


@dataclass(frozen=True)
class Author:
    """Who makes a change and from where. `kind` is person, key or operator."""

    kind: str
    id: str
    address: str | None = None
    request_id: str | None = None


class Audit:
    """Writes and reads the audit entries of the gateway's store."""

    def __init__(self, entries: Collection) -> None:
        self._entries = entries

    @contextlib.asynccontextmanager
    async def change(
        self, tenant_id: str, author: Author, action: Action, target: str, details: Mapping[str, Any] | None = None
    ) -> AsyncIterator[None]:
        """Wraps one change of `target`, an id or a name. `details` are JSON without secrets and content.

        The entry stays when the change was or may have been made and is deleted when it was refused. Raises
        StorageUnavailable, before the change, when the entry cannot be written.
        """
        entry_id = new_id()
        await self._entries.insert(
            {
                "_id": entry_id,
                "tenantId": tenant_id,
                "at": format_utc(now_utc()),
                "action": action.value,
                "target": target,
                "actor": {"kind": author.kind, "id": author.id},
                "address": author.address,
                "requestId": author.request_id,
                "details": dict(details or {}),
                "outcome": _BEGUN,
            }
        )
        try:
            yield
        except BaseException as error:
            if changed_nothing(error):
                with contextlib.suppress(StorageUnavailable):
                    await self._entries.delete_many({"_id": entry_id})
            raise
        try:
            await self._entries.update_one({"_id": entry_id}, {"$set": {"outcome": _DONE}})
        except StorageUnavailable:
            log.warning("audit_left_unfinished", entry_id=entry_id, action=action.value)

    async def page(self, tenant_id: str, *, limit: int, before: str | None) -> list[AuditView]:
        """A tenant's entries with ids below `before`, newest first. Raises StorageUnavailable."""
        where: dict[str, Any] = {"tenantId": tenant_id}
        if before:
            where["_id"] = {"$lt": before}
        return [_view(entry) for entry in await self._entries.find(where, sort=[("_id", -1)], limit=limit)]


def author_of(request: Request, caller: Caller) -> Author:
    """The author of changes that an authenticated request makes."""
    kind = "key" if caller.is_key else "person"
    name = caller.credential_id if caller.is_key else caller.subject
    return Author(kind, name, client_address(request), request_id_of(request.scope))


def operator_of(request: Request) -> Author:
    """The author of changes that are made with the operators' key."""
    return Author("operator", "operator", client_address(request), request_id_of(request.scope))


class AuditRoutes:
    """The public route of the audit trail."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/api/audit", tags=["audit"])
        router.add_api_route("", self.page, methods=["GET"], response_model=AuditPage, summary="Who changed what")
        return router

    async def page(self, caller: Admin, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Response:
        """Changes of keys, members, workspaces, plans, prompts and documents, and erasures, newest first."""
        before = read_cursor(cursor)
        with storage_errors_as_problems():
            entries = await self._audit.page(caller.tenant_id, limit=limit + 1, before=before)
        items, next_cursor = first_page(entries, limit, lambda entry: entry.id)
        return json_response(AuditPage(items=items, next_cursor=next_cursor).to_json())


def _view(entry: Mapping[str, Any]) -> AuditView:
    return AuditView(
        id=entry["_id"],
        at=entry["at"],
        action=entry["action"],
        target=entry["target"],
        actor=AuditActor(**entry["actor"]),
        address=entry["address"],
        request_id=entry["requestId"],
        details=entry["details"],
        outcome=entry["outcome"],
    )
