"""Settings of the summarizer, read from the environment."""

from pydantic import Field, SecretStr

from shared.llm.settings import ModelSettings
from shared.messaging.settings import KafkaSettings
from shared.privacy.settings import PrivacySettings
from shared.service.settings import ObservabilitySettings
from shared.storage.settings import StorageSettings


class SummarizerSettings(KafkaSettings, StorageSettings, ModelSettings, PrivacySettings, ObservabilitySettings):
    """Shared settings, and the summarizer's own under `SUMMARIZER_`."""

    summarizer_host: str = Field(default="127.0.0.1", description="address the internal HTTP listens on")
    summarizer_port: int = Field(default=8081, ge=1, le=65535, description="port of the internal HTTP")
    summarizer_max_tokens: int = Field(default=600, ge=64, le=8000, description="longest summary, in model tokens")
    summarizer_cache_days: int = Field(
        default=7, ge=1, le=365, description="how long a summary is kept, if RESULT_RETENTION_DAYS is not less"
    )
    result_retention_days: int = Field(default=30, ge=1, le=3650, description="how long upgrades can be read")
    internal_token: SecretStr = Field(description="secret that services show each other on internal HTTP")
    gateway_url: str = Field(default="http://127.0.0.1:8080", description="base URL of the gateway, for its holds")
    usage_url: str = Field(default="http://127.0.0.1:8085", description="base URL of the usage service")
