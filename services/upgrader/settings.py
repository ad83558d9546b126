"""What the upgrader can be told from the environment."""

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
    internal_token: SecretStr = Field(description="secret that services show each other on internal HTTP")
    gateway_url: str = Field(default="http://127.0.0.1:8080", description="base URL of the gateway, for its holds")
    usage_url: str = Field(default="http://127.0.0.1:8085", description="base URL of the usage service")
