"""Reads the credential of a request from its headers, without verifying it."""

import hashlib
from dataclasses import dataclass

from starlette.requests import HTTPConnection

from services.gateway.http.problems import ProblemError
from shared.contracts.problems import UNAUTHENTICATED

_CHALLENGE = 'Bearer realm="prompt-upgrader"'
_LONGEST_CREDENTIAL = 16 * 1024


@dataclass(frozen=True)
class Presented:
    """One credential. `as_bearer` is False for one that came only as `X-API-Key`."""

    value: str
    as_bearer: bool

    def digest(self) -> bytes:
        return credential_digest(self.value)


def credential_digest(value: str) -> bytes:
    """SHA-256 of a credential, which needs no salt: credentials hold 256 random bits and cannot be guessed."""
    return hashlib.sha256(value.encode("utf-8", "surrogateescape")).digest()


def presented_credential(request: HTTPConnection) -> Presented:
    """The one credential of a request. Raises ProblemError when there is none or several that differ."""
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


def unauthenticated(detail: str) -> ProblemError:
    return ProblemError(UNAUTHENTICATED, detail, headers={"WWW-Authenticate": _CHALLENGE})


def unknown_credential() -> ProblemError:
    """The problem of an invalid credential. Its text does not depend on what is invalid."""
    problem = unauthenticated("The credential is not valid.")
    problem.headers["WWW-Authenticate"] += ', error="invalid_token"'
    return problem
