"""The public keys of an identity provider (JWKS): cached, refreshed in the background, found again after a rotation."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import jwt
import orjson
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from services.gateway.identity.jwt_tokens import KeysUnavailable, TokenRefused
from shared.observability.logs import get_logger

_FRESH_SECONDS = 300.0
_USABLE_SECONDS = 3600.0
_UNKNOWN_KEY_PAUSE_SECONDS = 60.0
_FAILURE_PAUSE_SECONDS = 5.0
_TIMEOUT = httpx.Timeout(3.0)
_WHOLE_FETCH_SECONDS = 5.0
_MOST_BYTES = 256 * 1024
_MOST_KEYS = 100
_LEAST_RSA_BITS = 2048
# The algorithm is bound to the kind of key: what the token says must be the same.
_ALGORITHMS = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}

log = get_logger(__name__)

Keys = Mapping[tuple[str, str | None], Any]


class RemoteKeys:
    """Keys by algorithm and key id from a JWKS address. Component.

    A key id that nobody knows makes it look again, at most once a minute however many come. Keys older than an hour
    are no longer believed.
    """

    algorithms = frozenset(_ALGORITHMS.values())

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._http: httpx.AsyncClient | None = None
        self._keys: Keys = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._looked_for_unknown_at: float | None = None
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
            await self._first_keys()
            if self._find(algorithm, key_id) is None:
                # These keys are as new as can be: looking again at once would find no more.
                self._looked_for_unknown_at = self._clock()
        elif age > _FRESH_SECONDS and self._may_try():
            self._fetch()
        key = self._find(algorithm, key_id)
        if key is None and self._may_look_for_unknown():
            await asyncio.shield(self._fetch())
            key = self._find(algorithm, key_id)
        if key is None:
            raise TokenRefused
        return key

    async def _first_keys(self) -> None:
        if self._fetching is None and not self._may_try():
            raise KeysUnavailable
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
        return self._tried_at is None or self._clock() - self._tried_at >= _FAILURE_PAUSE_SECONDS

    def _may_look_for_unknown(self) -> bool:
        last = self._looked_for_unknown_at
        if last is not None and self._clock() - last < _UNKNOWN_KEY_PAUSE_SECONDS:
            # Somebody else has begun to look a moment ago; the answer will do for this one too.
            return self._fetching is not None
        self._looked_for_unknown_at = self._clock()
        return True

    def _fetch(self) -> asyncio.Task[None]:
        """The fetch that is under way, or a new one. It never raises."""
        if self._fetching is None:
            self._tried_at = self._clock()
            self._fetching = asyncio.create_task(self._fetch_now(), name="jwks")
            self._fetching.add_done_callback(self._fetched)
        return self._fetching

    def _fetched(self, _: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _fetch_now(self) -> None:
        try:
            async with asyncio.timeout(_WHOLE_FETCH_SECONDS):
                keys = parse_keys(await self._download())
        except (httpx.HTTPError, TimeoutError, ValueError) as error:
            log.warning("signing_keys_not_fetched", error=type(error).__name__)
            return
        if not keys:
            log.warning("signing_keys_not_usable")
        self._keys, self._fetched_at = keys, self._clock()

    async def _download(self) -> bytes:
        self._http = self._http or httpx.AsyncClient(timeout=_TIMEOUT)
        body = bytearray()
        async with self._http.stream("GET", self._url, headers={"Accept": "application/json"}) as answer:
            if answer.status_code != 200:
                raise ValueError(f"status {answer.status_code}")
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > _MOST_BYTES:
                    raise ValueError("too large")
        return bytes(body)


def parse_keys(body: bytes) -> Keys:
    """The usable keys of a JWKS document by algorithm and key id. Raises ValueError for what is not one."""
    document = orjson.loads(body)
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("not a JWKS document")
    keys: dict[tuple[str, str | None], Any] = {}
    for number, entry in enumerate(document["keys"][:_MOST_KEYS]):
        found = _usable(entry)
        if found is not None:
            algorithm, key = found
            key_id = entry.get("kid")
            # Keys without an id are only found when they are the only one of their kind.
            keys.setdefault((algorithm, key_id if isinstance(key_id, str) else f"\0{number}"), key)
    return keys


def _usable(entry: Any) -> tuple[str, Any] | None:
    """A public key for signatures with the algorithm it is for; None for every other kind."""
    if not isinstance(entry, dict) or "d" in entry or entry.get("use", "sig") != "sig":
        return None
    curve = entry.get("crv") if entry.get("kty") != "RSA" else None
    algorithm = _ALGORITHMS.get((str(entry.get("kty")), curve if isinstance(curve, str) else None))
    if (
        algorithm is None
        or entry.get("alg", algorithm) != algorithm
        or "verify" not in entry.get("key_ops", ["verify"])
    ):
        return None
    try:
        key = jwt.PyJWK(entry, algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if isinstance(key, RSAPublicKey) and key.key_size < _LEAST_RSA_BITS:
        return None
    return algorithm, key
