"""Public HTTP bodies of workspaces, their members, API keys and the audit."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from shared.contracts.contract import Contract, Timestamp
from shared.contracts.upgrade_http import ClientBody, NotBlank

MAX_NAME_CHARACTERS = 100
MAX_SUBJECT_CHARACTERS = 255

RoleName = Literal["VIEWER", "MEMBER", "ADMIN", "OWNER"]


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must not hold control characters")
    return text


Name = Annotated[NotBlank, AfterValidator(_printable), Field(min_length=1, max_length=MAX_NAME_CHARACTERS)]
Subject = Annotated[NotBlank, AfterValidator(_printable), Field(min_length=1, max_length=MAX_SUBJECT_CHARACTERS)]


class NewWorkspace(ClientBody):
    """Body of `POST /api/workspaces`."""

    name: Name


class WorkspaceView(Contract):
    """A workspace, and the caller's role in it. `personal` is the one that its person was given."""

    id: str
    name: str
    role: RoleName
    personal: bool
    created_at: Timestamp


class WorkspacePage(Contract):
    items: list[WorkspaceView]
    next_cursor: str | None


def _stands_in_a_path(subject: str) -> str:
    # Whoever takes a member away writes it into the address, and `members/..` is another one: the workspace itself.
    if subject.strip(".") == "":
        raise ValueError("must be more than dots")
    return subject


class NewMember(ClientBody):
    """Body of `POST /api/workspaces/{id}/members`. `subject` is the `sub` of the person's tokens."""

    subject: Annotated[Subject, AfterValidator(_stands_in_a_path)]
    role: RoleName


class ChangedMember(ClientBody):
    """Body of `PATCH /api/workspaces/{id}/members/{subject}`."""

    role: RoleName


class MemberView(Contract):
    subject: str
    role: RoleName
    created_at: Timestamp


class MemberPage(Contract):
    items: list[MemberView]
    next_cursor: str | None


class NewKey(ClientBody):
    """Body of `POST /api/keys`. Without `expiresAt` the key is good until it is revoked."""

    name: Name
    role: RoleName
    expires_at: Timestamp | None = None


class KeyView(Contract):
    """An API key as it can be listed. `prefix` is how it begins; `lastUsedAt` is right to a few seconds."""

    id: str
    name: str
    role: RoleName
    prefix: str
    created_at: Timestamp
    expires_at: Timestamp | None
    last_used_at: Timestamp | None
    created_by: str


class NewKeyView(KeyView):
    """A new API key, with the key itself: the only answer that ever holds it."""

    key: str


class KeyPage(Contract):
    items: list[KeyView]
    next_cursor: str | None


class AuditActor(Contract):
    """Who made a change. `kind` is person, key, operator or system, and open for more."""

    kind: str
    id: str


class AuditView(Contract):
    """One change. `outcome` is `unfinished` when it was cut off: it may have been made or not."""

    id: str
    at: Timestamp
    action: str
    target: str
    actor: AuditActor
    address: str | None
    request_id: str | None
    details: dict[str, Any]
    outcome: Literal["done", "unfinished"]


class AuditPage(Contract):
    """A page of the audit, newest first. `nextCursor` is null on the last one."""

    items: list[AuditView]
    next_cursor: str | None
