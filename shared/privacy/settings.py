"""Settings: the vault keys that seal personal values and hash identities."""

import base64
import binascii
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_KEY_BYTES = 32


def parse_vault_keys(text: str) -> list[bytes]:
    """Parses a comma-separated list of 32-byte keys in base64 or base64url.

    Raises ValueError if the list is empty or an entry is not 32 bytes of base64; the message never contains a key.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ValueError("must hold at least one key")
    keys = []
    for position, part in enumerate(parts, start=1):
        standard = part.replace("-", "+").replace("_", "/").rstrip("=")
        try:
            key = base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"key {position} is not base64") from None
        if len(key) != _KEY_BYTES:
            raise ValueError(f"key {position} has {len(key)} bytes, not {_KEY_BYTES}")
        keys.append(key)
    return keys


class PrivacySettings(BaseSettings):
    """Settings of services that handle personal values."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", hide_input_in_errors=True)

    vault_key: Annotated[
        SecretStr,
        Field(description="32-byte keys in base64, separated by commas: the first encrypts, all decrypt"),
    ]

    @field_validator("vault_key", mode="after")
    @classmethod
    def _usable_keys(cls, value: SecretStr) -> SecretStr:
        parse_vault_keys(value.get_secret_value())
        return value
