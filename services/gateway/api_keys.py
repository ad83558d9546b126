"""Authentication by the demo tenant's API key."""

import hashlib
import hmac

from starlette.requests import HTTPConnection

from services.gateway.caller import Caller, Role
from services.gateway.problem_details import ProblemError
from shared.contracts.ids import derived_id
from shared.contracts.problems import UNAUTHENTICATED

DEMO_TENANT_ID = derived_id("tenant", "demo")
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="prompt-upgrader"'}


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _unauthenticated(detail: str) -> ProblemError:
    return ProblemError(UNAUTHENTICATED, detail, headers=_CHALLENGE)


def presented_credential(request: HTTPConnection) -> str:
    """The one credential of a request. Raises ProblemError when there is none, or several that disagree."""
    credentials = {value.strip() for value in request.headers.getlist("x-api-key")}
    for header in request.headers.getlist("authorization"):
        scheme, _, value = header.strip().partition(" ")
        if scheme.lower() != "bearer" or not value.strip():
            raise _unauthenticated("Authorization must be of the form: Bearer <credential>.")
        credentials.add(value.strip())
    if not credentials or credentials == {""}:
        raise _unauthenticated("Send an API key as X-API-Key or as Authorization: Bearer.")
    if len(credentials) > 1:
        raise _unauthenticated("The request has several credentials that disagree.")
    return credentials.pop()


class DemoKey:
    """Knows the one API key of the demo tenant, by its hash. Without a key nobody gets in."""

    def __init__(self, api_key: str | None) -> None:
        self._digest = _digest(api_key) if api_key else None
        self._caller = Caller(
            tenant_id=DEMO_TENANT_ID, subject="demo", role=Role.OWNER, credential_id=derived_id("credential", "demo")
        )

    async def __call__(self, request: HTTPConnection) -> Caller:
        """The demo tenant's caller. Raises ProblemError (unauthenticated) for everybody else."""
        digest = _digest(presented_credential(request))
        if self._digest is None or not hmac.compare_digest(digest, self._digest):
            raise _unauthenticated("The credential is not known.")
        return self._caller
