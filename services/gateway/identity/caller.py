"""The authenticated caller of a request, the roles a caller can have, and the port that identifies callers."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from starlette.requests import HTTPConnection


class Role(StrEnum):
    """What a caller may do in a workspace, from least to most."""

    VIEWER = "VIEWER"
    MEMBER = "MEMBER"
    ADMIN = "ADMIN"
    OWNER = "OWNER"

    def allows(self, needed: "Role") -> bool:
        """Whether this role includes the rights of `needed`."""
        return _RANK[self] >= _RANK[needed]

    def at_most(self, other: "Role") -> "Role":
        """The lesser of the two."""
        return self if other.allows(self) else other


_RANK = {role: rank for rank, role in enumerate(Role)}


class NeedsRole(Exception):
    """The operation requires a higher role than the caller has."""

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.role = role


@dataclass(frozen=True)
class Caller:
    """An authenticated caller. No field is secret.

    `subject` names the person or key, `credential_id` the credential. `person_id` is the person, or the person that
    answers for a key; None for a key without such a person.
    """

    tenant_id: str
    subject: str
    role: Role
    credential_id: str
    is_key: bool = True
    person_id: str | None = None


class Identify(Protocol):
    async def __call__(
        self, request: HTTPConnection, workspace_id: str | None = None, *, fresh: bool = False
    ) -> Caller:
        """The caller of the request in workspace `workspace_id`, by default in the one that the request names.

        With `fresh` the answer is read from the store, otherwise it may be some seconds old. Raises ProblemError:
        unauthenticated, not_found for a workspace that the caller does not belong to, unavailable.
        """


def scope_of(caller: Caller) -> str:
    """The scope of the caller's idempotency keys.

    It includes the credential, since the stored answer may hold a secret that only its creator may see.
    """
    return f"{caller.tenant_id}:{caller.credential_id}"
