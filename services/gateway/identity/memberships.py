"""The rules for members of a workspace. Every change of them leaves at least one OWNER."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.gateway.identity.caller import NeedsRole, Role
from shared.contracts.contract import format_utc

MAX_MEMBERS = 500
MAX_OWNED_WORKSPACES = 3


class WorkspaceRefused(Exception):
    """The change would violate a rule of workspaces; the message tells the client which."""


class NoSuchMember(Exception):
    """The person is not a member of the workspace."""


@dataclass(frozen=True)
class Membership:
    """One person in a workspace. `subject` is the `sub` of the person's tokens."""

    person_id: str
    subject: str
    role: Role
    created_at: datetime

    def to_document(self) -> dict[str, Any]:
        return {"subject": self.subject, "role": self.role.value, "createdAt": format_utc(self.created_at)}

    @staticmethod
    def from_document(person_id: str, document: Mapping[str, Any]) -> "Membership":
        created_at = datetime.fromisoformat(document["createdAt"])
        return Membership(person_id, document["subject"], Role(document["role"]), created_at)


Members = Mapping[str, Membership]
"""By person id."""


def with_member(members: Members, member: Membership, by: Role) -> Members:
    """The members with one more, added by a caller with role `by`. Raises NeedsRole and WorkspaceRefused."""
    if member.role is Role.OWNER and by is not Role.OWNER:
        raise NeedsRole(Role.OWNER)
    if member.person_id in members:
        raise WorkspaceRefused("This person is a member already.")
    if len(members) >= MAX_MEMBERS:
        raise WorkspaceRefused(f"A workspace has at most {MAX_MEMBERS} members.")
    return {**members, member.person_id: member}


def with_role(members: Members, person_id: str, role: Role, by: Role, *, home_of: str | None) -> Members:
    """The members with a new role for one of them, changed by a caller with role `by`.

    `home_of` is the id of the person whose personal workspace this is. Raises NoSuchMember, NeedsRole and
    WorkspaceRefused.
    """
    member = _member(members, person_id)
    if Role.OWNER in (role, member.role) and by is not Role.OWNER:
        raise NeedsRole(Role.OWNER)
    if role is not Role.OWNER:
        _require_another_owner(members, person_id, home_of)
    return {**members, person_id: Membership(person_id, member.subject, role, member.created_at)}


def without_member(members: Members, person_id: str, by: Role, *, home_of: str | None) -> Members:
    """The members without one of them. Arguments and errors as for `with_role`."""
    member = _member(members, person_id)
    if member.role is Role.OWNER and by is not Role.OWNER:
        raise NeedsRole(Role.OWNER)
    _require_another_owner(members, person_id, home_of)
    return {other_id: other for other_id, other in members.items() if other_id != person_id}


def _member(members: Members, person_id: str) -> Membership:
    if person_id not in members:
        raise NoSuchMember
    return members[person_id]


def _require_another_owner(members: Members, leaving: str, home_of: str | None) -> None:
    if leaving == home_of:
        raise WorkspaceRefused("A person stays the OWNER of their personal workspace.")
    owners = [member.person_id for member in members.values() if member.role is Role.OWNER]
    if owners == [leaving]:
        raise WorkspaceRefused("The last OWNER stays OWNER: make another member OWNER first.")
