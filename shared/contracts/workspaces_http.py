"""Public HTTP bodies of workspaces, their members, API keys and the audit log."""

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
    """A workspace, and the caller's role in it. `personal` marks the workspace that was created for the caller."""

    id: str
    name: str
    role: RoleName
    personal: bool
    created_at: Timestamp


class WorkspacePage(Contract):
    """A page of the caller's workspaces. `nextCursor` is null on the last one."""

    items: list[WorkspaceView]
    next_cursor: str | None


def _stands_in_a_path(subject: str) -> str:
    # The subject is part of the URL that removes a member, and `members/..` is the URL of the workspace itself.
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
    """A member of a workspace. `subject` is the `sub` of the person's tokens."""

    subject: str
    role: RoleName
    created_at: Timestamp


class MemberPage(Contract):
    """A page of members. `nextCursor` is null on the last one."""

    items: list[MemberView]
    next_cursor: str | None


class NewKey(ClientBody):
    """Body of `POST /api/keys`. Without `expiresAt` the key is valid until it is revoked."""

    name: Name
    role: RoleName
    expires_at: Timestamp | None = None


class KeyView(Contract):
    """An API key without its secret. `prefix` is how it begins; `lastUsedAt` may lag by a few seconds."""

    id: str
    name: str
    role: RoleName
    prefix: str
    created_at: Timestamp
    expires_at: Timestamp | None
    last_used_at: Timestamp | None
    created_by: str


class NewKeyView(KeyView):
    """A new API key, with the key itself. No other answer contains it."""

    key: str


class KeyPage(Contract):
    """A page of API keys. `nextCursor` is null on the last one."""

    items: list[KeyView]
    next_cursor: str | None


class AuditActor(Contract):
    """Who made a change. `kind` is person, key, operator or system; clients must accept others."""

    kind: str
    id: str


class AuditView(Contract):
    """One change. `outcome` is `unfinished` when it was interrupted: it may or may not have been made."""

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
    """A page of the audit log, newest first. `nextCursor` is null on the last one."""

    items: list[AuditView]
    next_cursor: str | None
