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


@dataclass(frozen=True)
class Caller:
    """An authenticated caller. `subject` is the person or key, `credential_id` what it came with; neither is secret."""

    tenant_id: str
    subject: str
    role: Role
    credential_id: str


class Identify(Protocol):
    async def __call__(self, request: HTTPConnection) -> Caller:
        """Who sent the request. Raises ProblemError (unauthenticated) when that cannot be said for sure."""
