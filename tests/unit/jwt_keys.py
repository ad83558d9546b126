"""Keys and tokens for tests, JWKS documents made of them, and what checks those tokens."""

import json
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from services.gateway.identity.jwks import RemoteKeys
from services.gateway.identity.jwt_tokens import TokenRefused, TokenVerifier

ISSUER = "https://id.example.org/"
AUDIENCE = "prompt-upgrader"
SECRET = "a secret of the tests that is long enough"

Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True)
class SigningKey:
    """A private key with the id and the algorithm it is published under."""

    private: Private
    kid: str
    algorithm: str

    def jwk(self, **changes: Any) -> dict[str, Any]:
        algorithm = jwt.get_algorithm_by_name(self.algorithm)
        entry: dict[str, Any] = json.loads(algorithm.to_jwk(self.private.public_key()))
        entry.pop("key_ops", None)
        return {**entry, "kid": self.kid, "alg": self.algorithm, "use": "sig", **changes}

    def token(self, **changes: Any) -> str:
        return jwt.encode(claims(**changes), self.private, self.algorithm, headers={"kid": self.kid})


@lru_cache
def rsa_key(kid: str = "rsa", bits: int = 2048) -> SigningKey:
    return SigningKey(rsa.generate_private_key(65537, bits), kid, "RS256")


@lru_cache
def ec_key(kid: str = "ec") -> SigningKey:
    return SigningKey(ec.generate_private_key(ec.SECP256R1()), kid, "ES256")


@lru_cache
def ed_key(kid: str = "ed") -> SigningKey:
    return SigningKey(ed25519.Ed25519PrivateKey.generate(), kid, "EdDSA")


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims with changes; None takes one away."""
    now = int(time.time())
    good = {"sub": "ann", "iss": ISSUER, "aud": AUDIENCE, "exp": now + 600, "iat": now}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def secret_token(secret: str = SECRET, algorithm: str = "HS256", **changes: Any) -> str:
    return jwt.encode(claims(**changes), secret, algorithm)


def document_of(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"keys": list(entries)}).encode()


class Published(RemoteKeys):
    """Remote keys whose server is a list in the test, with a clock that the test moves."""

    def __init__(self, *entries: dict[str, Any]) -> None:
        self.now = 1000.0
        super().__init__("http://unused.invalid/", clock=lambda: self.now)
        self.entries = list(entries)
        self.fetches = 0
        self.failure: Exception | None = None

    async def _download(self) -> bytes:
        self.fetches += 1
        if self.failure:
            raise self.failure
        return document_of(*self.entries)


def verifier(keys: RemoteKeys) -> TokenVerifier:
    return TokenVerifier(keys, issuer=ISSUER, audience=AUDIENCE)


async def refused(keys: TokenVerifier, token: str) -> bool:
    """Whether the token is not good. Raises KeysUnavailable."""
    try:
        await keys.verify(token)
    except TokenRefused:
        return True
    return False
