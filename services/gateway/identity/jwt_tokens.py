"""Verifies the JWTs of persons. The algorithm follows from the key that is configured, never from the token alone."""

from dataclasses import dataclass
from typing import Any, Protocol

import jwt

SKEW_SECONDS = 60
_LONGEST_SUBJECT = 255
_REQUIRED = ["exp", "iss", "aud", "sub"]


class TokenRefused(Exception):
    """The token is not one of ours, or not any more. Says nothing of why: that is only good for who forges them."""


class KeysUnavailable(Exception):
    """The keys that tokens are signed with cannot be had right now, so nothing can be said of a token."""


class VerificationKeys(Protocol):
    algorithms: frozenset[str]

    async def key_for(self, algorithm: str, key_id: str | None) -> Any:
        """The key that verifies exactly this algorithm. Raises TokenRefused and KeysUnavailable."""


class SharedSecret:
    """HS256 with the secret of JWT_SECRET."""

    algorithms = frozenset({"HS256"})

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    async def key_for(self, algorithm: str, key_id: str | None) -> bytes:
        return self._secret


@dataclass(frozen=True)
class Token:
    """What a good token says. `expires_at` is in seconds since 1970 and includes the skew."""

    issuer: str
    subject: str
    expires_at: float


class TokenVerifier:
    """Checks signature, `exp`, `nbf`, `iss` and `aud`, with 60 s for clocks that differ."""

    def __init__(self, keys: VerificationKeys, *, issuer: str, audience: str) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience

    async def verify(self, token: str) -> Token:
        """What the token says. Raises TokenRefused and KeysUnavailable."""
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise TokenRefused from None
        algorithm = header.get("alg")
        # A critical extension that is not understood makes a token invalid (RFC 7515), and none is understood here.
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
