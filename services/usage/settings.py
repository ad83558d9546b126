"""Settings of the usage service and of its reconcile command, read from the environment."""

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from shared.messaging.settings import KafkaSettings
from shared.service.settings import ObservabilitySettings
from shared.storage.settings import StorageSettings


class ReconcileSettings(KafkaSettings, StorageSettings, ObservabilitySettings):
    """Settings of the reconcile command: the ledger's store, Redis and the broker."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore", validate_by_name=True)

    # Only reconciling reads Redis. Without it, the report says that holds were not compared.
    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    usage_event_retention_days: int = Field(
        default=400, ge=35, le=3650, description="how long single events are kept; what they add up to stays"
    )


class UsageSettings(ReconcileSettings):
    """Settings of the service: the shared ones, and its own under `USAGE_`."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore", validate_by_name=True)

    usage_host: str = Field(default="127.0.0.1", description="address the internal HTTP listens on")
    usage_port: int = Field(default=8085, ge=1, le=65535, description="port of the internal HTTP")
    usage_batch_events: int = Field(default=2000, ge=1, le=20_000, description="most events counted in one batch")
    usage_reconcile_every_seconds: float = Field(
        default=21_600.0, ge=0, description="time between two reconciliations by the service itself; 0: never"
    )
    internal_token: SecretStr = Field(description="secret that services show each other on internal HTTP")
