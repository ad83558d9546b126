"""Parsing of JWKS documents, and when they are fetched. Component tests fetch them over real HTTP."""

import asyncio
import gzip
import json
import math
from typing import Any

import httpx
import jwt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.gateway.identity.jwks import RemoteKeys, parse_keys
from services.gateway.identity.jwt_tokens import KeysUnavailable
from tests.unit.jwt_keys import (
    Published,
    SigningKey,
    claims,
    document_of,
    ec_key,
    ed_key,
    refused,
    rsa_key,
    verifier,
)

ALL_KEYS = (rsa_key(), ec_key(), ed_key())


def _document_of(*entries: Any) -> bytes:
    """A document as any server may write it, with numbers and texts that some JSON parsers refuse."""
    return ('{"keys": [' + ", ".join(map(_json, entries)) + "]}").encode()


def _json(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)}: {_json(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_json, value)) + "]"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**300:
        return "9" * math.ceil(value.bit_length() / 3)
    return "1e999" if value == math.inf else "-1e999" if value == -math.inf else json.dumps(value)


def test_unusable_keys_are_skipped() -> None:
    weak = rsa_key("weak", 1024)
    document = document_of(
        rsa_key().jwk(kid="for encryption", use="enc"),
        rsa_key().jwk(kid="another algorithm", alg="RS512"),
        rsa_key().jwk(kid="cannot verify", key_ops=["encrypt"]),
        ec_key().jwk(kid="another curve", crv="P-384"),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "secret", "alg": "HS256"},
        {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
        {**rsa_key().jwk(kid="private"), "d": "AQAB"},
        weak.jwk(),
        rsa_key().jwk(kid="good"),
    )
    assert list(parse_keys(document)) == [("RS256", "good")]
    for body in (b"[]", b"{}", b'{"keys": 1}', b"no json"):
        with pytest.raises(ValueError):
            parse_keys(body)
    assert parse_keys(b'{"keys": [1, null, {}]}') == {}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=5,
)
_MEMBERS = st.sampled_from(["kty", "use", "key_ops", "alg", "kid", "crv", "n", "e", "x", "y", "d", "x5c", "oth", "k"])


@given(st.sampled_from(ALL_KEYS), _MEMBERS | st.text(), _JSON, st.booleans())
@example(ALL_KEYS[0], "key_ops", None, True)
@example(ALL_KEYS[0], "key_ops", 7, False)
@example(ALL_KEYS[0], "key_ops", True, True)
@example(ALL_KEYS[1], "x", "\ud800", True)
@example(ALL_KEYS[2], "more", 10**400, True)
@example(ALL_KEYS[2], "more", 10**5000, True)
@example(ALL_KEYS[2], "more", float("inf"), True)
def test_an_invalid_entry_does_not_affect_others(odd: SigningKey, member: str, value: Any, comes_first: bool) -> None:
    entries = [rsa_key().jwk(kid="good"), {**odd.jwk(kid="odd"), member: value}]
    found = parse_keys(_document_of(*(reversed(entries) if comes_first else entries)))
    assert found[("RS256", "good")] == rsa_key().private.public_key()


@given(_JSON, st.booleans())
def test_an_entry_that_is_no_object_does_not_affect_others(value: Any, comes_first: bool) -> None:
    entries = [rsa_key().jwk(kid="good"), value]
    assert ("RS256", "good") in parse_keys(_document_of(*(reversed(entries) if comes_first else entries)))


async def test_a_token_without_a_key_id_needs_a_single_candidate() -> None:
    bare = jwt.encode(claims(), rsa_key().private, "RS256")
    nameless = rsa_key().jwk()
    del nameless["kid"]
    assert not await refused(verifier(Published(nameless, ec_key().jwk())), bare)
    assert await refused(verifier(Published(rsa_key().jwk(), rsa_key("two").jwk())), bare)


async def test_unknown_key_ids_cause_one_fetch_a_minute() -> None:
    keys = Published(rsa_key().jwk())
    checks = verifier(keys)
    for number in range(50):
        assert await refused(checks, rsa_key(f"unknown {number % 3}").token())
    assert keys.fetches == 1
    assert not await refused(checks, rsa_key().token())
    keys.now += 61
    for _ in range(50):
        assert await refused(checks, rsa_key("unknown 1").token())
    assert keys.fetches == 2


async def test_a_failed_fetch_is_repeated_after_a_pause() -> None:
    keys = Published(rsa_key().jwk())
    checks = verifier(keys)
    assert not await refused(checks, rsa_key().token())
    keys.entries.append(ec_key("new").jwk())
    keys.failure = ValueError("out")
    for _ in range(20):
        assert await refused(checks, ec_key("new").token())
    assert keys.fetches == 2
    keys.now += 4
    assert await refused(checks, ec_key("new").token())
    assert keys.fetches == 2
    keys.now += 2
    for _ in range(20):
        assert await refused(checks, ec_key("new").token())
    assert keys.fetches == 3
    keys.failure, keys.now = None, keys.now + 6
    assert not await refused(checks, ec_key("new").token())
    assert keys.fetches == 4
    for _ in range(12):
        assert await refused(checks, rsa_key("unknown").token())
        keys.now += 4.9
    assert keys.fetches == 4
    keys.now += 2
    assert await refused(checks, rsa_key("unknown").token())
    assert keys.fetches == 5


async def test_concurrent_unknown_key_ids_cause_one_fetch() -> None:
    keys = Published(rsa_key().jwk())
    checks = verifier(keys)
    for _ in range(3):
        answers = await asyncio.gather(*(refused(checks, rsa_key(f"unknown {n % 3}").token()) for n in range(50)))
        assert all(answers)
    assert keys.fetches == 1
    keys.now += 301  # the search and the due refresh are one fetch
    for _ in range(3):
        await asyncio.gather(*(refused(checks, rsa_key(f"unknown {n % 3}").token()) for n in range(50)))
    assert keys.fetches == 2


@pytest.mark.parametrize("failure", [TypeError("odd"), RecursionError(), httpx.InvalidURL("odd"), UnicodeError()])
async def test_a_failed_fetch_keeps_the_present_keys(failure: Exception) -> None:
    keys = Published(rsa_key().jwk())
    checks = verifier(keys)
    keys.failure = failure
    with pytest.raises(KeysUnavailable):
        await checks.verify(rsa_key().token())
    keys.failure, keys.now = None, keys.now + 6
    assert not await refused(checks, rsa_key().token())
    keys.failure, keys.now = failure, keys.now + 301
    assert not await refused(checks, rsa_key().token())
    assert keys._is_fetching()
    await keys._fetch()
    assert not await refused(checks, rsa_key().token())
    assert await refused(checks, ec_key("unknown").token())


def _served(body: bytes, **headers: str) -> tuple[RemoteKeys, list[httpx.Request]]:
    """Remote keys whose server returns that answer, and the requests it received."""
    asked: list[httpx.Request] = []

    def serve(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, stream=httpx.ByteStream(body), headers=headers)

    keys = RemoteKeys("http://keys.invalid/")
    keys._http = httpx.AsyncClient(transport=httpx.MockTransport(serve))
    return keys, asked


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "identity"}])
async def test_an_uncompressed_answer_is_read(headers: dict[str, str]) -> None:
    keys, asked = _served(document_of(rsa_key().jwk()), **headers)
    assert not await refused(verifier(keys), rsa_key().token())
    assert asked[0].headers["accept-encoding"] == "identity"
    await keys.stop(1)


async def test_a_compressed_answer_is_refused() -> None:
    keys, _ = _served(gzip.compress(document_of(rsa_key().jwk())), **{"Content-Encoding": "gzip"})
    with pytest.raises(KeysUnavailable):
        await verifier(keys).verify(rsa_key().token())
    await keys.stop(1)


async def test_a_large_answer_is_refused() -> None:
    keys, _ = _served(document_of(rsa_key().jwk()) + b" " * 300_000)
    with pytest.raises(KeysUnavailable):
        await verifier(keys).verify(rsa_key().token())
    await keys.stop(1)


async def test_a_rotated_key_is_found_at_once() -> None:
    keys = Published(rsa_key().jwk())
    checks = verifier(keys)
    assert not await refused(checks, rsa_key().token())
    keys.entries.append(ec_key("new").jwk())
    assert not await refused(checks, ec_key("new").token())
    assert keys.fetches == 2
    assert not await refused(checks, rsa_key().token())


async def test_a_withdrawn_key_is_refused() -> None:
    keys = Published(rsa_key().jwk(), ec_key().jwk())
    checks = verifier(keys)
    assert not await refused(checks, rsa_key().token())
    keys.entries.pop(0)
    keys.now += 301
    await checks.verify(ec_key().token())  # old keys serve while new ones are fetched
    assert keys._is_fetching()
    await keys._fetch()
    assert await refused(checks, rsa_key().token())


async def test_an_outage_of_the_provider() -> None:
    keys = Published(rsa_key().jwk())
    checks = verifier(keys)
    keys.failure = ValueError("out")
    for _ in range(5):
        with pytest.raises(KeysUnavailable):
            await checks.verify(rsa_key().token())
    assert keys.fetches == 1
    keys.failure, keys.now = None, keys.now + 6
    assert not await refused(checks, rsa_key().token())
    keys.failure, keys.now = ValueError("out"), keys.now + 1800
    assert not await refused(checks, rsa_key().token())  # out for half an hour: the last keys are still used
    keys.now += 3600
    with pytest.raises(KeysUnavailable):
        await checks.verify(rsa_key().token())
    await keys.stop(1)
