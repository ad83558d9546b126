"""The public keys of an identity provider (JWKS, RFC 7517): parsed, cached, and refreshed in the background."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from services.gateway.identity.jwt_tokens import KeysUnavailable, TokenRefused
from shared.observability.logs import get_logger
from shared.service.single_flight import SingleFlight

_MOST_KEYS = 100
_LEAST_RSA_BITS = 2048
# The type of a key determines its algorithm; the token must name the same one.
_ALGORITHMS = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}

_FRESH_SECONDS = 300.0
_USABLE_SECONDS = 3600.0
_UNKNOWN_KEY_PAUSE_SECONDS = 60.0
_FAILURE_PAUSE_SECONDS = 5.0
_TIMEOUT = httpx.Timeout(3.0)
_WHOLE_FETCH_SECONDS = 5.0
_MOST_BYTES = 256 * 1024
# A small compressed answer could fill the memory when it is decompressed.
_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity"}

# By algorithm and key id; a key without an id has its position in the document instead.
Keys = Mapping[tuple[str, str | int], Any]

log = get_logger(__name__)


class RemoteKeys:
    """Keys by algorithm and key id from a JWKS URL. Component.

    Keys are refreshed after 5 minutes and used for at most an hour. An unknown key id triggers an extra fetch: at most
    one a minute for all of them, or one every 5 s while fetches fail.
    """

    algorithms = frozenset(_ALGORITHMS.values())

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._http: httpx.AsyncClient | None = None
        self._keys: Keys = {}
        self._fetched_at: float | None = None
        self._failed_at: float | None = None
        self._fetches = SingleFlight[str, None]()
        # Keys that callers of the running fetch need when it brings the first keys.
        self._wanted: set[tuple[str, str | None]] = set()
        # Whether the running fetch is for an unknown key id, and when the last such fetch succeeded.
        self._searching = False
        self._searched_at: float | None = None

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        await self._fetches.stop()
        if self._http:
            await self._http.aclose()

    async def key_for(self, algorithm: str, key_id: str | None) -> Any:
        """The public key for that algorithm and id. Raises TokenRefused and KeysUnavailable."""
        if not self._are_usable():
            await self._fetch_first_keys(algorithm, key_id)
        elif self._age() > _FRESH_SECONDS and self._may_fetch():
            self._fetch()
        key = self._find(algorithm, key_id)
        if key is None and self._may_search():
            self._searching = True
            await asyncio.shield(self._fetch())
            key = self._find(algorithm, key_id)
        if key is None:
            raise TokenRefused
        return key

    async def _fetch_first_keys(self, algorithm: str, key_id: str | None) -> None:
        if not self._is_fetching() and not self._may_fetch():
            raise KeysUnavailable
        self._wanted.add((algorithm, key_id))
        await asyncio.shield(self._fetch())
        if not self._are_usable():
            raise KeysUnavailable

    def _find(self, algorithm: str, key_id: str | None) -> Any:
        if key_id is not None:
            return self._keys.get((algorithm, key_id))
        candidates = [key for (known, _), key in self._keys.items() if known == algorithm]
        return candidates[0] if len(candidates) == 1 else None

    def _age(self) -> float:
        return float("inf") if self._fetched_at is None else self._clock() - self._fetched_at

    def _are_usable(self) -> bool:
        return self._age() <= _USABLE_SECONDS

    def _may_fetch(self) -> bool:
        return self._failed_at is None or self._clock() - self._failed_at >= _FAILURE_PAUSE_SECONDS

    def _may_search(self) -> bool:
        if self._is_fetching():
            # A fetch that another caller began a moment ago serves this one too.
            return True
        last = self._searched_at
        return self._may_fetch() and (last is None or self._clock() - last >= _UNKNOWN_KEY_PAUSE_SECONDS)

    def _is_fetching(self) -> bool:
        return self._fetches.is_running(self._url)

    def _fetch(self) -> asyncio.Task[None]:
        """The running fetch, or a new one. It never raises."""
        return self._fetches.start(self._url, self._fetch_now)

    async def _fetch_now(self) -> None:
        try:
            async with asyncio.timeout(_WHOLE_FETCH_SECONDS):
                keys = parse_keys(await self._download())
        except Exception as error:
            # Whatever failed, the present keys stay in use and the next fetch may succeed.
            log.warning("signing_keys_not_fetched", error=type(error).__name__)
            self._failed_at = self._clock()
        else:
            self._replace_keys(keys)
        self._wanted.clear()
        self._searching = False

    def _replace_keys(self, keys: Keys) -> None:
        if not keys:
            log.warning("signing_keys_not_usable")
        self._keys, self._fetched_at, self._failed_at = keys, self._clock(), None
        # Set here and not by the callers that wait: none of them can start another search in between.
        if self._searching or any(self._find(*wanted) is None for wanted in self._wanted):
            self._searched_at = self._fetched_at

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


def parse_keys(body: bytes) -> Keys:
    """The usable keys of a JWKS document. Raises ValueError for anything else.

    An invalid entry is skipped: documents may contain keys for other purposes and readers.
    """
    try:
        # Not orjson, which refuses a whole document for one large number or lone surrogate.
        document = json.loads(body, parse_int=float)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("not a JWKS document")
    keys: dict[tuple[str, str | int], Any] = {}
    for number, entry in enumerate(document["keys"][:_MOST_KEYS]):
        try:
            found = _usable_key(entry)
        except Exception:  # noqa: S112 -- however an entry is invalid, the others stay usable
            continue
        if found is not None:
            algorithm, key = found
            key_id = entry.get("kid")
            # Keys without an id are found only when they are the only ones of their algorithm.
            keys.setdefault((algorithm, key_id if isinstance(key_id, str) else number), key)
    return keys


def _usable_key(entry: Any) -> tuple[str, Any] | None:
    """The algorithm and the public key of an entry for signatures; None or any exception for other entries."""
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
