"""Settings of the document store and of Redis."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class StorageSettings(BaseSettings):
    """`MONGODB_URL` (unset: SQLite files in `DATA_DIR`), `DATA_DIR`, `REDIS_URL`. The URLs may hold passwords."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore")

    mongodb_url: SecretStr | None = None
    data_dir: Path = Path(".data")
    redis_url: SecretStr

    @field_validator("redis_url")
    @classmethod
    def _is_a_redis_url(cls, url: SecretStr) -> SecretStr:
        if not _is_url(url.get_secret_value(), ("redis", "rediss", "unix")):
            raise ValueError("must be a URL such as redis://host:6379/0")
        return url

    @field_validator("mongodb_url")
    @classmethod
    def _is_a_mongodb_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url is None or not url.get_secret_value():
            return None
        if not _is_url(url.get_secret_value(), ("mongodb", "mongodb+srv")):
            raise ValueError("must be a URL such as mongodb://host:27017")
        return url


def _is_url(text: str, schemes: Sequence[str]) -> bool:
    parts = urlsplit(text)
    return parts.scheme in schemes and bool(parts.netloc or parts.path)
