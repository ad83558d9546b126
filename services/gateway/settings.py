"""What the gateway can be told from the environment."""

from pydantic import Field, SecretStr, field_validator

from shared.messaging.settings import KafkaSettings
from shared.observability.settings import ObservabilitySettings
from shared.privacy.settings import PrivacySettings
from shared.storage.settings import StorageSettings


class GatewaySettings(KafkaSettings, StorageSettings, PrivacySettings, ObservabilitySettings):
    """Shared settings, and the gateway's own."""

    gateway_host: str = Field(default="127.0.0.1", description="address the public HTTP listens on")
    gateway_port: int = Field(default=8080, ge=1, le=65535, description="port of the public HTTP")
    demo_api_key: SecretStr | None = Field(
        default=None, description="API key of the demo tenant; unset: nobody has one"
    )
    cors_allowed_origins: str = Field(
        default="", description="origins that browsers may call from, comma-separated, or *"
    )
    upgrade_deadline_seconds: float = Field(default=60.0, ge=1, le=600, description="time an upgrade has until it ends")
    result_retention_days: int = Field(default=30, ge=1, le=3650, description="how long upgrades can be read")
    internal_token: SecretStr = Field(description="secret that services show each other on internal HTTP")
    upgrader_url: str = Field(default="http://127.0.0.1:8083", description="base URL of the upgrader")
    rag_url: str = Field(default="http://127.0.0.1:8082", description="base URL of rag")
    usage_url: str = Field(default="http://127.0.0.1:8085", description="base URL of the usage service")

    @field_validator("cors_allowed_origins")
    @classmethod
    def _are_origins(cls, value: str) -> str:
        for origin in filter(None, (part.strip() for part in value.split(","))):
            if origin != "*" and (not origin.startswith(("http://", "https://")) or origin.count("/") != 2):
                raise ValueError("must be origins such as https://app.example.org, separated by commas")
        return value

    @property
    def allowed_origins(self) -> list[str]:
        """The origins of `cors_allowed_origins`, one by one."""
        return [part.strip() for part in self.cors_allowed_origins.split(",") if part.strip()]
