"""Kafka settings: address and security of the broker, consumer timing, limits of the stage runner."""

import socket
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class KafkaSettings(BaseSettings):
    """Read from the environment and `.env`; a variable is named as its field, in upper case."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore")

    kafka_bootstrap_servers: str = "127.0.0.1:9092"
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    kafka_sasl_username: str | None = None
    kafka_sasl_password: SecretStr | None = None
    kafka_ssl_cafile: str | None = None

    kafka_enable_idempotence: bool = Field(default=True, description="off for a broker without idempotent producers")
    kafka_replication_factor: int = Field(default=1, ge=1)
    kafka_fetch_max_wait_ms: int = Field(default=25, ge=1)
    kafka_session_timeout_ms: int = Field(default=6000, ge=1000)
    kafka_request_timeout_ms: int = Field(default=10_000, ge=1000)
    kafka_static_membership: bool = False
    kafka_instance_name: str = Field(
        default_factory=socket.gethostname, description="unique per process of a service; names the static member"
    )

    stage_concurrency: int = Field(default=256, ge=1)
    stage_max_uncommitted: int = Field(default=4096, ge=1, description="records of a partition above the committed one")
    stage_retry_budget_seconds: float = Field(default=60.0, gt=0, description="for messages without a deadline")
    stage_time_limit_seconds: float = Field(default=300.0, gt=0, description="one attempt without a deadline")
    stage_stall_seconds: float = Field(
        default=30.0, gt=0, description="the process ends when records wait and none is read for this long"
    )

    @field_validator("kafka_bootstrap_servers")
    @classmethod
    def _names_hosts_and_ports(cls, servers: str) -> str:
        for server in servers.split(","):
            host, _, port = server.strip().rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise ValueError("must be host:port, or several of these separated by commas")
        return servers
