"""What a JWKS document (RFC 7517) has of keys that signatures of tokens can be checked with."""

import json
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

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
