"""The settings of the gateway."""

from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from services.gateway.http.client_address import parse_networks
from shared.messaging.settings import KafkaSettings
from shared.privacy.settings import PrivacySettings
from shared.service.settings import ObservabilitySettings
from shared.storage.settings import StorageSettings

_LEAST_SECRET_BYTES = 32


class GatewaySettings(KafkaSettings, StorageSettings, PrivacySettings, ObservabilitySettings):
    """The shared settings and the gateway's own."""

    gateway_host: str = Field(default="127.0.0.1", description="address the public HTTP listens on")
    gateway_port: int = Field(default=8080, ge=1, le=65535, description="port of the public HTTP")
    demo_api_key: SecretStr | None = Field(
        default=None, description="API key of the demo tenant; unset: no key gives access to it"
    )
    admin_api_key: SecretStr | None = Field(
        default=None, description="key of the operators' routes (X-Admin-Key); unset: they answer 404"
    )
    cors_allowed_origins: str = Field(
        default="", description="origins that browsers may call from, comma-separated, or *"
    )
    rate_limit_per_minute: int = Field(
        default=60,
        ge=0,
        le=1_000_000,
        description="upgrades accepted in any 60 s from one user, or from one credential without a user; 0: no limit. "
        "Also the failed authentications allowed from one address; 60 when this is 0",
    )
    upgrade_deadline_seconds: float = Field(
        default=60.0, ge=1, le=600, description="time until an upgrade ends at the latest"
    )
    result_retention_days: int = Field(default=30, ge=1, le=3650, description="how long upgrades can be read")
    internal_token: SecretStr = Field(description="secret that services show each other on internal HTTP")
    jwt_secret: SecretStr | None = Field(default=None, description="secret of persons' HS256 tokens, at least 32 bytes")
    jwt_jwks_url: str | None = Field(
        default=None,
        description="URL of the JWKS with the public keys of tokens (RS256, ES256, EdDSA); instead of a secret",
    )
    jwt_issuer: str | None = Field(default=None, description="`iss` that tokens must have")
    jwt_audience: str | None = Field(default=None, description="`aud` that tokens must have")
    trusted_proxies: str = Field(
        default="", description="proxies (addresses and networks) whose X-Forwarded-For is trusted, comma-separated"
    )
    # Also settings of the stages: the hold of an upgrade covers the longest answers that they ask for.
    summarizer_max_tokens: int = Field(default=600, ge=64, le=8000, description="longest summary, in model tokens")
    upgrader_max_tokens: int = Field(default=2000, ge=64, le=32000, description="longest rewrite, in model tokens")
    summarizer_url: str = Field(default="http://127.0.0.1:8081", description="base URL of the summarizer")
    upgrader_url: str = Field(default="http://127.0.0.1:8083", description="base URL of the upgrader")
    rag_url: str = Field(default="http://127.0.0.1:8082", description="base URL of rag")
    usage_url: str = Field(default="http://127.0.0.1:8085", description="base URL of the usage service")

    @field_validator("cors_allowed_origins")
    @classmethod
    def _check_origins(cls, value: str) -> str:
        for origin in filter(None, (part.strip() for part in value.split(","))):
            if origin != "*" and (not origin.startswith(("http://", "https://")) or origin.count("/") != 2):
                raise ValueError("must be origins such as https://app.example.org, separated by commas")
        return value

    @field_validator("jwt_secret")
    @classmethod
    def _check_secret_length(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value().encode()) < _LEAST_SECRET_BYTES:
            raise ValueError(f"must have at least {_LEAST_SECRET_BYTES} bytes")
        return value

    @field_validator("jwt_jwks_url")
    @classmethod
    def _check_http_url(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "https://host")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("is not an http(s) address")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, value: str) -> str:
        try:
            parse_networks(value)
        except ValueError:
            raise ValueError("must be IP addresses or networks, separated by commas") from None
        return value

    @model_validator(mode="after")
    def _check_token_settings(self) -> Self:
        if self.jwt_secret and self.jwt_jwks_url:
            raise ValueError("JWT_SECRET and JWT_JWKS_URL exclude each other")
        if (self.jwt_secret or self.jwt_jwks_url) and not (self.jwt_issuer and self.jwt_audience):
            raise ValueError("JWT_SECRET or JWT_JWKS_URL needs JWT_ISSUER and JWT_AUDIENCE as well")
        if (self.jwt_issuer or self.jwt_audience) and not (self.jwt_secret or self.jwt_jwks_url):
            raise ValueError("JWT_ISSUER and JWT_AUDIENCE need JWT_SECRET or JWT_JWKS_URL")
        return self

    @property
    def allowed_origins(self) -> list[str]:
        """The origins of `cors_allowed_origins` as a list."""
        return [part.strip() for part in self.cors_allowed_origins.split(",") if part.strip()]
