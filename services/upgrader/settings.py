"""Settings of the upgrader, read from the environment."""

from pydantic import Field, SecretStr

from shared.llm.settings import ModelSettings
from shared.messaging.settings import KafkaSettings
from shared.privacy.settings import PrivacySettings
from shared.service.settings import ObservabilitySettings
from shared.storage.settings import StorageSettings


class UpgraderSettings(KafkaSettings, StorageSettings, ModelSettings, PrivacySettings, ObservabilitySettings):
    """Shared settings, and the upgrader's own under `UPGRADER_`."""

    upgrader_host: str = Field(default="127.0.0.1", description="address the internal HTTP listens on")
    upgrader_port: int = Field(default=8083, ge=1, le=65535, description="port of the internal HTTP")
    upgrader_max_tokens: int = Field(default=2000, ge=64, le=32000, description="longest rewrite, in model tokens")
    upgrader_temperature: float = Field(default=0.2, ge=0, le=2, description="sampling temperature of the rewrite")
    result_retention_days: int = Field(default=30, ge=1, le=3650, description="how long results are kept")
    cached_answer_max_age_hours: float = Field(
        default=24,
        ge=0,
        le=24 * 365,
        validation_alias="CACHED_ANSWER_MAX_AGE_HOURS",
        description="maximum age of earlier answers that are reused while the model is down; 0: none",
    )
    openai_fallback_base_url: str | None = Field(
        default=None,
        validation_alias="OPENAI_FALLBACK_BASE_URL",
        description="second server for rewrites, used when the first fails; unset: the first one",
    )
    openai_fallback_api_key: SecretStr | None = Field(
        default=None,
        validation_alias="OPENAI_FALLBACK_API_KEY",
        description="key of the second server; unset: the first one's",
    )
    openai_fallback_model: str | None = Field(
        default=None, min_length=1, validation_alias="OPENAI_FALLBACK_MODEL", description="the second model's name"
    )
    internal_token: SecretStr = Field(description="secret that services show each other on internal HTTP")
    gateway_url: str = Field(default="http://127.0.0.1:8080", description="base URL of the gateway, for its holds")
    usage_url: str = Field(default="http://127.0.0.1:8085", description="base URL of the usage service")

    def fallback_model(self) -> ModelSettings | None:
        """Settings of the second model: those of the first with another server, key or name. None without one."""
        if self.openai_fallback_model is None and self.openai_fallback_base_url is None:
            return None
        changed = {
            "openai_base_url": self.openai_fallback_base_url or self.openai_base_url,
            "openai_api_key": self.openai_fallback_api_key or self.openai_api_key,
            "openai_model": self.openai_fallback_model or self.openai_model,
        }
        return self.model_copy(update=changed)
