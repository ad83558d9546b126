"""The two brokers that everything is measured on, and how each is spoken to."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.local.server_commands import ensure_cluster_libs
from deploy.local.servers import start_kafka, start_tansu
from shared.messaging.settings import KafkaSettings

EMBEDDED, KAFKA = "embedded", "kafka"
_PROJECT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Broker:
    """A running broker; `kind` is EMBEDDED or KAFKA."""

    kind: str
    url: str

    def settings(self, **changes: object) -> KafkaSettings:
        """How services are told to speak to it. Nothing is read from the environment or `.env`."""
        values: dict[str, object] = {
            "kafka_bootstrap_servers": self.url,
            "kafka_enable_idempotence": self.kind == KAFKA,
            # Joining a group takes half a session time-out on the embedded broker; nothing measured depends on it.
            "kafka_session_timeout_ms": 2000 if self.kind == EMBEDDED else 6000,
        }
        return KafkaSettings(_env_file=None, **(values | changes))  # type: ignore[arg-type]


async def libs() -> Path:
    """The jars of Apache Kafka. Raises ServerUnavailable, which says what is missing."""
    return await ensure_cluster_libs(_PROJECT / ".cluster")


@asynccontextmanager
async def running(kind: str) -> AsyncIterator[Broker]:
    """An empty broker of that kind, for as long as the context lasts."""
    if kind == EMBEDDED:
        async with await start_tansu() as tansu:
            yield Broker(kind, tansu.url)
        return
    with tempfile.TemporaryDirectory(prefix="bench-kafka-") as folder:
        async with await start_kafka(Path(folder), await libs()) as kafka:
            yield Broker(kind, kafka.url)
