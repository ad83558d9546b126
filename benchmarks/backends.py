"""Starts what benchmarks run on: the two brokers, the scripted model, and bare SQLite files to compare with."""

import sqlite3
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from sys import executable

import httpx

from deploy.local.ports import free_port
from deploy.local.processes import ServerCommand
from deploy.local.readiness import port_answers
from deploy.local.server_commands import ensure_cluster_libs
from deploy.local.servers import ServerProcess, start_kafka, start_tansu
from shared.messaging.settings import KafkaSettings

EMBEDDED, KAFKA = "embedded", "kafka"
PROJECT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Broker:
    """A running broker; `kind` is EMBEDDED or KAFKA."""

    kind: str
    url: str

    def settings(self) -> KafkaSettings:
        """Returns the settings that services use for this broker, independent of the environment and `.env`."""
        values: dict[str, object] = {
            "kafka_bootstrap_servers": self.url,
            "kafka_enable_idempotence": self.kind == KAFKA,
            # Joining a group takes half a session timeout on the embedded broker; no measurement depends on it.
            "kafka_session_timeout_ms": 2000 if self.kind == EMBEDDED else 6000,
        }
        return KafkaSettings(_env_file=None, **values)  # type: ignore[arg-type]


async def kafka_libs() -> Path:
    """Returns the folder of Apache Kafka's jars. Raises ServerUnavailable, whose message names what is missing."""
    return await ensure_cluster_libs(PROJECT / ".cluster")


@asynccontextmanager
async def running(kind: str) -> AsyncIterator[Broker]:
    """Runs an empty broker of that kind."""
    if kind == EMBEDDED:
        async with await start_tansu() as tansu:
            yield Broker(kind, tansu.url)
        return
    with tempfile.TemporaryDirectory(prefix="bench-kafka-") as folder:
        async with await start_kafka(Path(folder), await kafka_libs()) as kafka:
            yield Broker(kind, kafka.url)


@asynccontextmanager
async def scripted_model(latency_seconds: float) -> AsyncIterator[str]:
    """Runs the tests' scripted model in its own process; yields its base URL. It answers after `latency_seconds`."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    argv = (executable, "-m", "tests.model_server", "--port", str(port))
    command = ServerCommand("model", argv, port, url, lambda: port_answers(port), env={"PYTHONPATH": str(PROJECT)})
    async with ServerProcess(command):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as control:
            behaviour = {"latency_seconds": latency_seconds, "keep_requests": False}
            (await control.put("/control/behaviour", json=behaviour)).raise_for_status()
        yield url


def model_environment(url: str) -> dict[str, str]:
    """Returns the environment of a stack that uses the scripted model at `url`."""
    return {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "scripted"}


def open_sqlite(path: Path, *tables: str) -> sqlite3.Connection:
    """Opens a SQLite file as durable as the services' own, and runs the given CREATE TABLE statements."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    for table in tables:
        connection.execute(table)
    return connection
