"""Settings of the model client: the server and its models, time limits, retries and the circuit breaker."""

from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.llm.usage import parse_model_prices


class ModelSettings(BaseSettings):
    """Settings of a service that calls a model. Times are in seconds.

    Names in the environment are given in full, so a service's own `env_prefix` does not change them.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        validate_by_name=True,
        protected_namespaces=(),
    )

    openai_base_url: str | None = Field(
        default=None, validation_alias="OPENAI_BASE_URL", description="unset: the vendor's own address"
    )
    openai_api_key: SecretStr | None = Field(default=None, validation_alias="OPENAI_API_KEY", validate_default=True)
    openai_model: str = Field(default="gpt-4.1-mini", min_length=1, validation_alias="OPENAI_MODEL")
    openai_embedding_model: str = Field(
        default="text-embedding-3-small", min_length=1, validation_alias="OPENAI_EMBEDDING_MODEL"
    )
    model_max_in_flight: int = Field(
        default=256,
        ge=1,
        le=10_000,
        validation_alias="MODEL_MAX_IN_FLIGHT",
        description="requests to the model in flight per process",
    )
    model_attempts: int = Field(
        default=3,
        ge=1,
        le=10,
        validation_alias="MODEL_ATTEMPTS",
        description="requests per model call, not counting the repair of an unusable answer",
    )
    model_attempt_timeout_seconds: float = Field(
        default=20.0, gt=0, le=600, validation_alias="MODEL_ATTEMPT_TIMEOUT_SECONDS"
    )
    model_deadline_reserve_seconds: float = Field(
        default=0.5,
        ge=0,
        le=10,
        validation_alias="MODEL_DEADLINE_RESERVE_SECONDS",
        description="time kept free before a deadline for the caller to finish its work, seconds",
    )
    model_breaker_failures: int = Field(
        default=8,
        ge=1,
        validation_alias="MODEL_BREAKER_FAILURES",
        description="consecutive failed requests that open the circuit breaker",
    )
    model_breaker_open_seconds: float = Field(
        default=5.0,
        gt=0,
        validation_alias="MODEL_BREAKER_OPEN_SECONDS",
        description="how long the circuit breaker stays open before one request probes the model, seconds",
    )

    model_prices: str = Field(
        default="",
        validation_alias="MODEL_PRICES",
        description="prices by model, `name=IN/OUT, …` in dollars per million tokens; 0 is a price",
    )

    @field_validator("model_prices")
    @classmethod
    def _prices(cls, value: str) -> str:
        parse_model_prices(value)
        return value

    @field_validator("openai_base_url")
    @classmethod
    def _http_address(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "https://host")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("is not an http(s) address")
        return value or None

    @field_validator("openai_api_key")
    @classmethod
    def _key_required_by_vendor(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        missing = value is None or not value.get_secret_value().strip()
        if missing and info.data.get("openai_base_url", "invalid") is None:
            raise ValueError("is required unless OPENAI_BASE_URL names a server that needs no key")
        return None if missing else value

    @property
    def model_requests_per_call(self) -> int:
        """The most requests that one call can make, its repair included."""
        return self.model_attempts + 1
