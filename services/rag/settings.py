"""rag's settings, read from the environment."""

from pydantic import Field, SecretStr

from shared.llm.settings import ModelSettings
from shared.messaging.settings import KafkaSettings
from shared.privacy.settings import PrivacySettings
from shared.service.settings import ObservabilitySettings
from shared.storage.settings import StorageSettings


class RagSettings(KafkaSettings, StorageSettings, ModelSettings, PrivacySettings, ObservabilitySettings):
    """Shared settings, and rag's own under `RAG_`."""

    rag_host: str = Field(default="127.0.0.1", description="address the internal HTTP listens on")
    rag_port: int = Field(default=8082, ge=1, le=65535, description="port of the internal HTTP")
    internal_token: SecretStr = Field(description="secret that services show each other on internal HTTP")
    usage_url: str = Field(default="http://127.0.0.1:8085", description="base URL of the usage service")
    gateway_url: str = Field(default="http://127.0.0.1:8080", description="base URL of the gateway, for its holds")
    lancedb_uri: str | None = Field(default=None, description="where LanceDB keeps its tables; unset: in DATA_DIR")
    rag_index_concurrency: int = Field(default=2, ge=1, le=32, description="documents indexed at a time per process")
    rag_prepare_seconds: float = Field(default=120.0, gt=0, le=600, description="longest time to read one document")
    rag_check_seconds: float = Field(default=15.0, gt=0, le=60, description="longest time to open a file at upload")
    rag_query_seconds: float = Field(default=10.0, gt=0, le=60, description="longest time to embed a query")
    rag_resubmit_seconds: float = Field(
        default=90.0, ge=1, description="pending that long, a document is submitted for indexing again"
    )
    rag_give_up_hours: float = Field(default=24.0, gt=0, description="pending that long, a document has failed")
    rag_sweep_seconds: float = Field(default=10.0, ge=0.05, description="time between two sweeps")
    rag_output_hours: float = Field(
        default=24.0, gt=0, description="how long recorded stage outputs are kept, if RESULT_RETENTION_DAYS is not less"
    )
    result_retention_days: int = Field(default=30, ge=1, le=3650, description="how long upgrades can be read")
    rag_score_floor: float | None = Field(default=None, ge=-1, le=1, description="cosine that unrelated texts have")
    rag_score_ceiling: float | None = Field(default=None, ge=-1, le=1, description="cosine that a good match has")

    @property
    def index_uri(self) -> str:
        """The URI of LanceDB's tables; the default is in the data directory."""
        return self.lancedb_uri or str(self.data_dir / "rag" / "lancedb")
