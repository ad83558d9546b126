"""The rules of who is in a workspace. A workspace without an OWNER cannot come about, whatever is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.gateway.identity.caller import Role
from shared.contracts.contract import format_utc

MAX_MEMBERS = 500
MAX_OWNED_WORKSPACES = 3


class MembershipRefused(Exception):
    """The change would break a rule; the message says which, for who asked."""


class NeedsRole(Exception):
    """Only a higher role may do this."""

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.role = role


class NoSuchMember(Exception):
    """Nobody of that name is in the workspace."""


@dataclass(frozen=True)
class MemberOf:
    """One person in a workspace."""

    person_id: str
    subject: str
    role: Role
    created_at: datetime

    def to_document(self) -> dict[str, Any]:
        return {"subject": self.subject, "role": self.role.value, "createdAt": format_utc(self.created_at)}

    @staticmethod
    def from_document(person_id: str, document: Mapping[str, Any]) -> "MemberOf":
        made = datetime.fromisoformat(document["createdAt"])
        return MemberOf(person_id, document["subject"], Role(document["role"]), made)


Members = Mapping[str, MemberOf]


def with_member(members: Members, member: MemberOf, by: Role) -> Members:
    """The members with one more, added by somebody of role `by`."""
    if member.role is Role.OWNER and by is not Role.OWNER:
        raise NeedsRole(Role.OWNER)
    if member.person_id in members:
        raise MembershipRefused("This person is a member already.")
    if len(members) >= MAX_MEMBERS:
        raise MembershipRefused(f"A workspace has at most {MAX_MEMBERS} members.")
    return {**members, member.person_id: member}


def with_role(members: Members, person_id: str, role: Role, by: Role, *, home_of: str | None) -> Members:
    """The members with another role for one of them. `home_of` is the person whose personal workspace this is."""
    member = _known(members, person_id)
    if Role.OWNER in (role, member.role) and by is not Role.OWNER:
        raise NeedsRole(Role.OWNER)
    if role is not Role.OWNER:
        _keep_an_owner(members, person_id, home_of)
    return {**members, person_id: MemberOf(person_id, member.subject, role, member.created_at)}


def without_member(members: Members, person_id: str, by: Role, *, home_of: str | None) -> Members:
    """The members without one of them."""
    member = _known(members, person_id)
    if member.role is Role.OWNER and by is not Role.OWNER:
        raise NeedsRole(Role.OWNER)
    _keep_an_owner(members, person_id, home_of)
    return {other_id: other for other_id, other in members.items() if other_id != person_id}


def _known(members: Members, person_id: str) -> MemberOf:
    if person_id not in members:
        raise NoSuchMember
    return members[person_id]


def _keep_an_owner(members: Members, leaving: str, home_of: str | None) -> None:
    if leaving == home_of:
        raise MembershipRefused("A person stays the OWNER of their personal workspace.")
    owners = [member.person_id for member in members.values() if member.role is Role.OWNER]
    if owners == [leaving]:
        raise MembershipRefused("The last OWNER stays OWNER: make somebody else one first.")
