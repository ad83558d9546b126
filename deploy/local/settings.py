"""Settings of the local stack, and its secrets, which are generated on the first start."""

import base64
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

_OWNER_ONLY = 0o600


class LocalSettings(BaseSettings):
    """Settings of the supervisor. A URL replaces the part that it points to; an empty value counts as unset."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore", hide_input_in_errors=True)

    data_dir: Path = Field(default=Path(".data"), description="folder of the local stack's data, secrets and logs")
    gateway_host: str = Field(default="127.0.0.1", description="address on which the gateway listens")
    gateway_port: int = Field(default=8080, ge=0, le=65535, description="port of the gateway; 0 chooses a free one")

    kafka_bootstrap_servers: str | None = Field(default=None, description="Kafka to use instead of the embedded broker")
    redis_url: SecretStr | None = Field(default=None, description="Redis to use instead of the embedded one")
    mongodb_url: SecretStr | None = Field(default=None, description="MongoDB to use instead of SQLite files")
    openai_base_url: str | None = Field(default=None, description="model API to use instead of the offline model")
    openai_api_key: SecretStr | None = Field(
        default=None, description="key of the model API; replaces the offline model"
    )

    demo_api_key: SecretStr | None = Field(
        default=None, description="API key of the demo workspace; generated when unset"
    )
    vault_key: SecretStr | None = Field(
        default=None, description="key that seals placeholder maps; generated when unset"
    )
    internal_token: SecretStr | None = Field(
        default=None, description="token for requests between services; generated when unset"
    )

    embedded_broker_memory_limit_mb: int = Field(
        default=1024,
        ge=32,
        description="memory in MB above which the embedded broker, which keeps all data in memory, is replaced",
    )
    local_start_timeout_seconds: float = Field(
        default=90.0, gt=0, description="time limit for a part to become ready, seconds"
    )
    shutdown_grace_seconds: float = Field(
        default=25.0, gt=0, description="time that a stopping service has to finish its work, seconds"
    )
    local_log_file_mb: float = Field(default=10.0, gt=0, description="size at which a log file is rotated, MB")
    local_log_files: int = Field(default=3, ge=1, description="rotated log files kept for each part")

    @property
    def offline_model(self) -> bool:
        """Whether the stack runs the offline model."""
        return self.openai_base_url is None and self.openai_api_key is None


def stack_secrets(settings: LocalSettings) -> dict[str, str]:
    """Returns the secrets by the names of their environment variables.

    A secret that is not set is read from the data folder, or generated and stored there.
    """
    folder = settings.data_dir
    configured = {
        "DEMO_API_KEY": settings.demo_api_key,
        "VAULT_KEY": settings.vault_key,
        "INTERNAL_TOKEN": settings.internal_token,
    }
    generated: dict[str, tuple[str, Callable[[], str]]] = {
        "DEMO_API_KEY": ("demo-key", lambda: "pu_" + secrets.token_urlsafe(32)),
        "VAULT_KEY": ("vault-key", lambda: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()),
        "INTERNAL_TOKEN": ("internal-token", lambda: secrets.token_urlsafe(32)),
    }
    result = {}
    for name, (file, make) in generated.items():
        value = configured[name]
        result[name] = value.get_secret_value() if value else _stored(folder / file, make)
    return result


def _stored(file: Path, make: Callable[[], str]) -> str:
    if file.is_file():
        stored = file.read_text().strip()
        if stored:
            return stored
        file.unlink()
    secret = make()
    descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _OWNER_ONLY)
    with os.fdopen(descriptor, "w") as handle:
        handle.write(secret + "\n")
        handle.flush()
        os.fsync(handle.fileno())
    return secret
