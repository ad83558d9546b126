"""The credential that a request carries, before anybody knows what it is worth."""

import hashlib
from dataclasses import dataclass

from starlette.requests import HTTPConnection

from services.gateway.http.problems import ProblemError
from shared.contracts.problems import UNAUTHENTICATED

_CHALLENGE = 'Bearer realm="prompt-upgrader"'
_LONGEST_CREDENTIAL = 16 * 1024


def unauthenticated(detail: str) -> ProblemError:
    return ProblemError(UNAUTHENTICATED, detail, headers={"WWW-Authenticate": _CHALLENGE})


def unknown_credential() -> ProblemError:
    """Says the same whatever is wrong with a credential."""
    problem = unauthenticated("The credential is not valid.")
    problem.headers["WWW-Authenticate"] += ', error="invalid_token"'
    return problem


@dataclass(frozen=True)
class Presented:
    """One credential. `as_bearer` is False when it came as an API key only."""

    value: str
    as_bearer: bool

    def digest(self) -> bytes:
        """SHA-256 of the credential, to know it again by."""
        return credential_digest(self.value)


def credential_digest(value: str) -> bytes:
    """SHA-256. Enough for what is made of 256 random bits: nobody can try them all."""
    return hashlib.sha256(value.encode("utf-8", "surrogateescape")).digest()


def presented_credential(request: HTTPConnection) -> Presented:
    """The one credential of a request. Raises ProblemError when there is none, or several that disagree."""
    credentials = {value.strip() for value in request.headers.getlist("x-api-key")}
    as_bearer = False
    for header in request.headers.getlist("authorization"):
        scheme, _, value = header.strip().partition(" ")
        if scheme.lower() != "bearer" or not value.strip():
            raise unauthenticated("Authorization must be of the form: Bearer <credential>.")
        credentials.add(value.strip())
        as_bearer = True
    if not credentials or credentials == {""}:
        raise unauthenticated("Send an API key as X-API-Key, or a key or a token as Authorization: Bearer.")
    if len(credentials) > 1:
        raise unauthenticated("The request has several credentials that disagree.")
    value = credentials.pop()
    if len(value) > _LONGEST_CREDENTIAL:
        raise unknown_credential()
    return Presented(value, as_bearer)
