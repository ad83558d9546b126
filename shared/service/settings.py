"""Settings of every process for observability and shutdown, and the function that loads all settings."""

import sys
from typing import Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

SettingsT = TypeVar("SettingsT", bound=BaseSettings)

WRONG_SETTING_EXIT = 2


class ObservabilitySettings(BaseSettings):
    """Variable names are given in full, so that the `env_prefix` of a service does not apply to them."""

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", env_ignore_empty=True, extra="ignore", validate_by_name=True
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        default="INFO", validation_alias="LOG_LEVEL"
    )
    sentry_dsn: str | None = Field(default=None, validation_alias="SENTRY_DSN", repr=False)
    otel_exporter_otlp_endpoint: str | None = Field(default=None, validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT")
    metrics_token: str | None = Field(default=None, validation_alias="METRICS_TOKEN", repr=False)
    trace_sample_ratio: float = Field(default=1.0, ge=0.0, le=1.0, validation_alias="TRACE_SAMPLE_RATIO")
    shutdown_grace_seconds: float = Field(default=25.0, gt=0, validation_alias="SHUTDOWN_GRACE_SECONDS")

    @field_validator("sentry_dsn")
    @classmethod
    def _is_a_dsn(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "https://key@host/1")
        if parts.scheme not in ("http", "https") or not parts.username or not parts.path.rsplit("/", 1)[-1].isdigit():
            raise ValueError("is not a Sentry DSN")
        return value

    @field_validator("otel_exporter_otlp_endpoint")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "http://host")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("is not an http(s) address")
        return value


def load_settings(cls: type[SettingsT]) -> SettingsT:
    """Returns the settings of `cls` from the environment and `.env`.

    Wrong or missing settings end the process with exit code 2 and one line on stderr, which names each variable and
    the reason, never the value.
    """
    try:
        return cls()
    except ValidationError as error:
        problems = "; ".join(
            _environment_name(cls, item["loc"]) + _reason(item["type"], item["msg"])
            for item in error.errors(include_url=False, include_context=False, include_input=False)
        )
    except SettingsError as error:
        # The message names field and source; the cause would quote the value.
        problems = str(error).splitlines()[0]
    sys.stderr.write(f"wrong setting: {problems}\n")
    raise SystemExit(WRONG_SETTING_EXIT)


def _reason(kind: str, message: str) -> str:
    if kind == "missing":
        return "is required and not set"
    return " ".join(message.removeprefix("Value error, ").split())


def _environment_name(cls: type[BaseSettings], location: tuple[int | str, ...]) -> str:
    if not location:
        return ""  # several fields contradict each other; the reason names them
    name = str(location[0])
    field = cls.model_fields.get(name)
    if field is not None and isinstance(field.validation_alias, str):
        return f"{field.validation_alias}: "
    if field is not None:
        return (cls.model_config.get("env_prefix") or "").upper() + name.upper() + ": "
    return name.upper() + ": "
