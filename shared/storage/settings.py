"""Where a service keeps its documents, and where Redis is."""

from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class StorageSettings(BaseSettings):
    """`MONGODB_URL` (unset: SQLite files in `DATA_DIR`), `DATA_DIR`, `REDIS_URL`. The URLs may hold passwords."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore")

    mongodb_url: SecretStr | None = None
    data_dir: Path = Path(".data")
    redis_url: SecretStr
