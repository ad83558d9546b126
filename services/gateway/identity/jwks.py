"""The public keys of an identity provider (JWKS, RFC 7517): parsed, cached, and refreshed in the background."""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from services.gateway.identity.jwt_tokens import KeysUnavailable, TokenRefused
from shared.observability.logs import get_logger

_MOST_KEYS = 100
_LEAST_RSA_BITS = 2048
# The algorithm is bound to the kind of key: what the token says must be the same.
_ALGORITHMS = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
ALGORITHMS = frozenset(_ALGORITHMS.values())

# By algorithm and key id; a key without an id has the number of its entry for one.
Keys = Mapping[tuple[str, str | int], Any]


def parse_keys(body: bytes) -> Keys:
    """The usable keys of a JWKS document. Raises ValueError for what is not one.

    An entry that is odd in any way is skipped by itself: other people's keys may stand in the document too.
    """
    try:
        # Not orjson, which refuses the whole for one number or one half of a character that it cannot hold.
        document = json.loads(body, parse_int=float)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("not a JWKS document")
    keys: dict[tuple[str, str | int], Any] = {}
    for number, entry in enumerate(document["keys"][:_MOST_KEYS]):
        try:
            found = _usable(entry)
        except Exception:  # noqa: S112 -- in whatever way it is odd, it does not cost the others
            continue
        if found is not None:
            algorithm, key = found
            key_id = entry.get("kid")
            # Keys without an id are only found when they are the only one of their kind.
            keys.setdefault((algorithm, key_id if isinstance(key_id, str) else number), key)
    return keys


def _usable(entry: Any) -> tuple[str, Any] | None:
    """A public key for signatures with the algorithm it is for; None, or any error, for every other kind."""
    if not isinstance(entry, dict) or "d" in entry or entry.get("use", "sig") != "sig":
        return None
    curve = entry.get("crv") if entry.get("kty") != "RSA" else None
    algorithm = _ALGORITHMS.get((entry["kty"], curve))
    if (
        algorithm is None
        or entry.get("alg", algorithm) != algorithm
        or "verify" not in list(entry.get("key_ops", ["verify"]))
    ):
        return None
    key = jwt.PyJWK(entry, algorithm).key
    if isinstance(key, RSAPublicKey) and key.key_size < _LEAST_RSA_BITS:
        return None
    return algorithm, key


_FRESH_SECONDS = 300.0
_USABLE_SECONDS = 3600.0
_UNKNOWN_KEY_PAUSE_SECONDS = 60.0
_FAILURE_PAUSE_SECONDS = 5.0
_TIMEOUT = httpx.Timeout(3.0)
_WHOLE_FETCH_SECONDS = 5.0
_MOST_BYTES = 256 * 1024
# An answer that is packed small could fill the memory when it is unpacked.
_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity"}

log = get_logger(__name__)


class RemoteKeys:
    """Keys by algorithm and key id from a JWKS address. Component.

    A key id that nobody knows makes it look again: at most once a minute, or every 5 s while that fails, however many
    come. Keys older than an hour are no longer believed.
    """

    algorithms = ALGORITHMS

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._http: httpx.AsyncClient | None = None
        self._keys: Keys = {}
        self._fetched_at: float | None = None
        self._failed_at: float | None = None
        # What the fetch that is under way is waited for: the first keys of these, and any that are not known.
        self._wanted: set[tuple[str, str | None]] = set()
        self._looking = False
        self._looked_at: float | None = None
        self._fetching: asyncio.Task[None] | None = None

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        if self._fetching:
            self._fetching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._fetching
        if self._http:
            await self._http.aclose()

    async def key_for(self, algorithm: str, key_id: str | None) -> Any:
        """The public key of that id for that algorithm. Raises TokenRefused and KeysUnavailable."""
        age = self._age()
        if age is None or age > _USABLE_SECONDS:
            await self._first_keys(algorithm, key_id)
        elif age > _FRESH_SECONDS and self._may_try():
            self._fetch()
        key = self._find(algorithm, key_id)
        if key is None and self._may_look_for_unknown():
            self._looking = True
            await asyncio.shield(self._fetch())
            key = self._find(algorithm, key_id)
        if key is None:
            raise TokenRefused
        return key

    async def _first_keys(self, algorithm: str, key_id: str | None) -> None:
        if self._fetching is None and not self._may_try():
            raise KeysUnavailable
        self._wanted.add((algorithm, key_id))
        await asyncio.shield(self._fetch())
        age = self._age()
        if age is None or age > _USABLE_SECONDS:
            raise KeysUnavailable

    def _find(self, algorithm: str, key_id: str | None) -> Any:
        if key_id is not None:
            return self._keys.get((algorithm, key_id))
        candidates = [key for (known, _), key in self._keys.items() if known == algorithm]
        return candidates[0] if len(candidates) == 1 else None

    def _age(self) -> float | None:
        return None if self._fetched_at is None else self._clock() - self._fetched_at

    def _may_try(self) -> bool:
        return self._failed_at is None or self._clock() - self._failed_at >= _FAILURE_PAUSE_SECONDS

    def _may_look_for_unknown(self) -> bool:
        if self._fetching is not None:
            # Somebody else has begun to look a moment ago; the answer will do for this one too.
            return True
        last = self._looked_at
        return self._may_try() and (last is None or self._clock() - last >= _UNKNOWN_KEY_PAUSE_SECONDS)

    def _fetch(self) -> asyncio.Task[None]:
        """The fetch that is under way, or a new one. It never raises."""
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch_now(), name="jwks")
            self._fetching.add_done_callback(self._fetched)
        return self._fetching

    def _fetched(self, _: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _fetch_now(self) -> None:
        try:
            async with asyncio.timeout(_WHOLE_FETCH_SECONDS):
                keys = parse_keys(await self._download())
        except Exception as error:
            # Whatever it is, the keys at hand serve on, and the next look may find better ones.
            log.warning("signing_keys_not_fetched", error=type(error).__name__)
            self._failed_at = self._clock()
        else:
            self._take(keys)
        self._wanted.clear()
        self._looking = False

    def _take(self, keys: Keys) -> None:
        if not keys:
            log.warning("signing_keys_not_usable")
        self._keys, self._fetched_at, self._failed_at = keys, self._clock(), None
        # Noted here and not by who waits: nobody can come in between and look once more.
        if self._looking or any(self._find(*wanted) is None for wanted in self._wanted):
            self._looked_at = self._fetched_at

    async def _download(self) -> bytes:
        self._http = self._http or httpx.AsyncClient(timeout=_TIMEOUT)
        body = bytearray()
        async with self._http.stream("GET", self._url, headers=_HEADERS) as answer:
            if answer.status_code != 200:
                raise ValueError(f"status {answer.status_code}")
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise ValueError("encoded")
            async for piece in answer.aiter_raw():
                body += piece
                if len(body) > _MOST_BYTES:
                    raise ValueError("too large")
        return bytes(body)
