"""Verification of tokens with keys that the test provides. Component tests fetch keys over real HTTP."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from services.gateway.identity.jwt_tokens import SharedSecret, TokenVerifier
from services.gateway.settings import GatewaySettings
from shared.service.settings import load_settings
from tests.unit.jwt_keys import (
    AUDIENCE,
    ISSUER,
    SECRET,
    Published,
    SigningKey,
    claims,
    ec_key,
    ed_key,
    refused,
    rsa_key,
    secret_token,
    verifier,
)
from tests.unit.test_gateway_settings import GOOD

WITH_SECRET = TokenVerifier(SharedSecret(SECRET.encode()), issuer=ISSUER, audience=AUDIENCE)
ALL_KEYS = (rsa_key(), ec_key(), ed_key())


def _part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def _signed_by_hand(header: dict[str, Any], body: dict[str, Any], secret: bytes) -> str:
    """A token as an attacker signs it, with a combination that libraries refuse to make."""
    signed = f"{_part(header)}.{_part(body)}"
    signature = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    return signed + "." + base64.urlsafe_b64encode(signature).rstrip(b"=").decode()


async def test_a_valid_token_names_its_subject() -> None:
    token = await WITH_SECRET.verify(secret_token(sub="auth0|5f7c"))
    assert (token.issuer, token.subject) == (ISSUER, "auth0|5f7c")


@pytest.mark.parametrize("key", ALL_KEYS, ids=lambda key: key.algorithm)
async def test_every_kind_of_published_key(key: SigningKey) -> None:
    keys = Published(*(known.jwk() for known in ALL_KEYS))
    assert (await verifier(keys).verify(key.token())).subject == "ann"


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": int(time.time()) - 3600},
        {"exp": None},
        {"exp": "never"},
        {"exp": 10**400},
        {"nbf": int(time.time()) + 3600},
        {"iat": int(time.time()) + 3600},
        {"iss": "https://else.example.org/"},
        {"iss": None},
        {"aud": "another"},
        {"aud": ["another", "third"]},
        {"aud": None},
        {"sub": None},
        {"sub": ""},
        {"sub": " "},
        {"sub": "x" * 256},
        {"sub": "a\nb"},
    ],
)
async def test_invalid_claims_are_refused(changes: dict[str, Any]) -> None:
    assert await refused(WITH_SECRET, secret_token(**changes))


async def test_a_subject_that_is_not_text_is_refused() -> None:
    assert await refused(WITH_SECRET, _signed_by_hand({"alg": "HS256"}, claims(sub=7), SECRET.encode()))


async def test_clocks_may_differ_by_a_minute() -> None:
    now = int(time.time())
    assert not await refused(WITH_SECRET, secret_token(exp=now - 50))
    assert not await refused(WITH_SECRET, secret_token(nbf=now + 50))
    assert await refused(WITH_SECRET, secret_token(exp=now - 70))
    assert await refused(WITH_SECRET, secret_token(nbf=now + 70))
    assert not await refused(WITH_SECRET, secret_token(aud=["other", AUDIENCE]))


async def test_an_unsigned_token_is_refused() -> None:
    for algorithm in ("none", "None", "NONE", ""):
        unsigned = f"{_part({'alg': algorithm, 'typ': 'JWT'})}.{_part(claims())}."
        assert await refused(WITH_SECRET, unsigned)
        assert await refused(verifier(Published(rsa_key().jwk())), unsigned)


async def test_a_public_key_is_not_accepted_as_secret() -> None:
    public = rsa_key().private.public_key()
    for secret in (
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(rsa_key().jwk()).encode(),
    ):
        forged = _signed_by_hand({"alg": "HS256", "kid": "rsa"}, claims(), secret)
        assert await refused(verifier(Published(rsa_key().jwk())), forged)


async def test_an_algorithm_of_another_key_type_is_refused() -> None:
    keys = verifier(Published(rsa_key().jwk(), ec_key().jwk()))
    assert await refused(keys, jwt.encode(claims(), ec_key().private, "ES256", headers={"kid": "rsa"}))
    assert await refused(keys, jwt.encode(claims(), rsa_key().private, "PS256", headers={"kid": "rsa"}))
    assert await refused(keys, jwt.encode(claims(), rsa_key().private, "RS512", headers={"kid": "rsa"}))
    assert await refused(WITH_SECRET, secret_token(secret=SECRET * 2, algorithm="HS512"))
    assert await refused(WITH_SECRET, rsa_key().token())


async def test_other_secrets_and_malformed_tokens_are_refused() -> None:
    for token in (
        secret_token(secret="another secret of the tests, also long"),
        secret_token()[:-4] + "AAAA",
        "a.b.c",
        "..",
        "",
        "x" * 100,
        _part({"alg": "HS256"}) + "." + "e30" * 10,
        _part([1]) + "." + _part(claims()) + ".AA",
        _part({"alg": ["HS256"]}) + "." + _part(claims()) + ".AA",
        "é.é.é",
    ):
        assert await refused(WITH_SECRET, token), token


async def test_a_critical_extension_is_refused() -> None:
    header = {"alg": "HS256", "crit": ["exp-plus"], "exp-plus": 1}
    assert await refused(WITH_SECRET, _signed_by_hand(header, claims(), SECRET.encode()))
    inside = jwt.encode(claims(), ec_key("own").private, "ES256", headers={"jwk": ec_key("own").jwk(), "kid": "own"})
    assert await refused(verifier(Published(ec_key().jwk())), inside)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"JWT_SECRET": SECRET}, "JWT_ISSUER"),
        ({"JWT_SECRET": SECRET, "JWT_ISSUER": ISSUER}, "JWT_AUDIENCE"),
        ({"JWT_JWKS_URL": "https://id.example.org/keys", "JWT_AUDIENCE": AUDIENCE}, "JWT_ISSUER"),
        ({"JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE}, "JWT_SECRET"),
        ({"JWT_SECRET": "short", "JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE}, "JWT_SECRET"),
        ({"JWT_JWKS_URL": "file:///etc/keys", "JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE}, "JWT_JWKS_URL"),
        (
            {"JWT_SECRET": SECRET, "JWT_JWKS_URL": "https://k", "JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE},
            "JWT_JWKS_URL",
        ),
        ({"TRUSTED_PROXIES": "10.0.0.0/33"}, "TRUSTED_PROXIES"),
        ({"TRUSTED_PROXIES": "proxy.example.org"}, "TRUSTED_PROXIES"),
    ],
)
def test_contradicting_token_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], settings: dict[str, str], named: str
) -> None:
    for name, value in {**GOOD, **settings}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        load_settings(GatewaySettings)
    assert end.value.code == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert named in line
    assert settings.get(named) is None or settings[named] not in line


def test_valid_token_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**GOOD, "JWT_SECRET": SECRET, "JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE}.items():
        monkeypatch.setenv(name, value)
    assert load_settings(GatewaySettings).jwt_issuer == ISSUER
