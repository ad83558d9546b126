"""Encrypts ("seals") personal values with AES-256-GCM and computes keyed hashes of identities.

Both use one list of vault keys. The first key encrypts and every key decrypts: to rotate, put a new key in front, and
remove an old one once nothing sealed with it is left. Keyed hashes must survive a rotation, so they use the last
(oldest) key; removing that one changes every hash.
"""

import base64
import binascii
import hashlib
import hmac
import os
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared.contracts.upgrade_tasks import SealedText
from shared.privacy.settings import PrivacySettings, parse_vault_keys

_NONCE_BYTES = 12
_PII_PURPOSE = "pii"


class SealBroken(Exception):
    """Sealed text that cannot be opened: unknown key, different owner, or modified content."""


class Vault:
    """Seals and opens text that is bound to a tenant and a subject. Safe to share between threads and tasks."""

    def __init__(self, keys: list[bytes]) -> None:
        if not keys:
            raise ValueError("a vault needs at least one key")
        self._ciphers = {_key_id(key): AESGCM(_derive(key, "seal")) for key in keys}
        self._sealing_key_id = _key_id(keys[0])
        self._hash_key = keys[-1]

    @staticmethod
    def from_settings(settings: PrivacySettings) -> "Vault":
        """Returns a vault with the keys in `VAULT_KEY`."""
        return Vault(parse_vault_keys(settings.vault_key.get_secret_value()))

    def seal(self, text: str, *, tenant_id: str, subject_id: str, purpose: str = _PII_PURPOSE) -> SealedText:
        """Encrypts `text` with the first key. Opening it requires the same tenant, subject and purpose."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[self._sealing_key_id].encrypt(
            nonce, text.encode("utf-8", "surrogatepass"), _framed(tenant_id, subject_id, purpose)
        )
        return SealedText(
            key_id=self._sealing_key_id,
            nonce=base64.b64encode(nonce).decode(),
            ciphertext=base64.b64encode(sealed).decode(),
        )

    def open(self, sealed: SealedText, *, tenant_id: str, subject_id: str, purpose: str = _PII_PURPOSE) -> str:
        """Decrypts sealed text. Raises SealBroken, whose message never contains any of the text."""
        cipher = self._ciphers.get(sealed.key_id)
        if cipher is None:
            raise SealBroken("sealed with a key that is not in the list")
        try:
            nonce = base64.b64decode(sealed.nonce, validate=True)
            ciphertext = base64.b64decode(sealed.ciphertext, validate=True)
            opened = cipher.decrypt(nonce, ciphertext, _framed(tenant_id, subject_id, purpose))
        except (binascii.Error, ValueError, InvalidTag):
            raise SealBroken("not sealed for this owner, or changed since") from None
        return opened.decode("utf-8", "surrogatepass")

    def keyed_hash(self, purpose: str, *parts: str) -> str:
        """Returns the HMAC-SHA256 of the parts as 64 hex digits. Each purpose has its own key."""
        return hmac.new(_derive(self._hash_key, f"hash:{purpose}"), _framed(*parts), hashlib.sha256).hexdigest()

    def user_ref(self, tenant_id: str, user_id: str) -> str:
        """Returns the pseudonym of a tenant's end user: `u_` and 32 hex digits of a keyed hash."""
        return "u_" + self.keyed_hash("user-ref", tenant_id, user_id)[:32]


@lru_cache(maxsize=256)
def _derive(key: bytes, purpose: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=f"prompt-upgrader/{purpose}".encode()).derive(key)


def _key_id(key: bytes) -> str:
    return hashlib.sha256(_derive(key, "key-id")).hexdigest()[:8]


def _framed(*parts: str) -> bytes:
    # Length prefixes keep ("a", "bc") and ("ab", "c") distinct.
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    return b"".join(len(part).to_bytes(4, "big") + part for part in encoded)
