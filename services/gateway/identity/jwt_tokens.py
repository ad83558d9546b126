"""Verifies the JWTs of persons. The configured keys determine the algorithm, never the token alone."""

from dataclasses import dataclass
from typing import Any, Protocol

import jwt

SKEW_SECONDS = 60
_LONGEST_SUBJECT = 255
_REQUIRED = ["exp", "iss", "aud", "sub"]


class TokenRefused(Exception):
    """The token is invalid or expired. Carries no reason: only a forger would profit from one."""


class KeysUnavailable(Exception):
    """The verification keys cannot be fetched right now, so no token can be verified."""


class VerificationKeys(Protocol):
    algorithms: frozenset[str]

    async def key_for(self, algorithm: str, key_id: str | None) -> Any:
        """The key that verifies exactly this algorithm. Raises TokenRefused and KeysUnavailable."""


class SharedSecret:
    """HS256 with the secret in JWT_SECRET."""

    algorithms = frozenset({"HS256"})

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    async def key_for(self, algorithm: str, key_id: str | None) -> bytes:
        return self._secret


@dataclass(frozen=True)
class Token:
    """The claims of a valid token. `expires_at` is in seconds since 1970 and includes the skew."""

    issuer: str
    subject: str
    expires_at: float


class TokenVerifier:
    """Checks signature, `exp`, `nbf`, `iss` and `aud`, and tolerates clocks that differ by 60 s."""

    def __init__(self, keys: VerificationKeys, *, issuer: str, audience: str) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience

    async def verify(self, token: str) -> Token:
        """The claims of the token. Raises TokenRefused and KeysUnavailable."""
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise TokenRefused from None
        algorithm = header.get("alg")
        # RFC 7515: a critical extension that is not understood invalidates the token, and none is understood here.
        if not isinstance(algorithm, str) or algorithm not in self._keys.algorithms or "crit" in header:
            raise TokenRefused
        key = await self._keys.key_for(algorithm, header.get("kid"))
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=self._issuer,
                audience=self._audience,
                leeway=SKEW_SECONDS,
                options={"require": _REQUIRED},
            )
            expires_at = float(int(claims["exp"])) + SKEW_SECONDS
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError, OverflowError):
            raise TokenRefused from None
        subject = claims["sub"]
        if not subject.strip() or len(subject) > _LONGEST_SUBJECT or not subject.isprintable():
            raise TokenRefused
        return Token(self._issuer, subject, expires_at)
