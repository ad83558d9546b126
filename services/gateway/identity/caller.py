"""Who calls: the answer of authentication, whatever kind of credential it came from."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from starlette.requests import HTTPConnection


class Role(StrEnum):
    """What a caller may do, from least to most."""

    VIEWER = "VIEWER"
    MEMBER = "MEMBER"
    ADMIN = "ADMIN"
    OWNER = "OWNER"

    def allows(self, needed: "Role") -> bool:
        """Whether who has this role may do what needs the other."""
        return _RANK[self] >= _RANK[needed]

    def at_most(self, other: "Role") -> "Role":
        """The lesser of the two."""
        return self if other.allows(self) else other


_RANK = {role: rank for rank, role in enumerate(Role)}


@dataclass(frozen=True)
class Caller:
    """An authenticated caller. `subject` is the person or key, `credential_id` what it came with; neither is secret.

    `person_id` is the person, or the one who answers for a key; None for a key that nobody in particular made.
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
        """Who sent the request, in the workspace that it names or, before that, in `workspace_id`.

        With `fresh` as the store knows it now, else as it may have been some seconds ago.
        Raises ProblemError: unauthenticated when that cannot be said for sure, not_found for a workspace that is not
        the caller's, unavailable.
        """


def scope_of(caller: Caller) -> str:
    """Whose idempotency keys these are: nobody else gets the answer again, which may be a secret of whoever asked."""
    return f"{caller.tenant_id}:{caller.credential_id}"
