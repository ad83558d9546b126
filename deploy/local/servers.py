"""Real servers for tests and the local stack: each `start_…` returns a running `ServerProcess` (for `async with`).

A port that is not given is chosen free, and chosen again when somebody else took it in between.
"""

import uuid
from collections.abc import Callable
from pathlib import Path

from deploy.local.cluster_libs import ensure_cluster_libs
from deploy.local.server_commands import (
    ServerCommand,
    ServerUnavailable,
    free_port,
    kafka_command,
    mongo_command,
    tansu_command,
    valkey_command,
)
from deploy.local.server_process import ServerProcess

__all__ = [
    "ServerCommand",
    "ServerProcess",
    "ServerUnavailable",
    "ensure_cluster_libs",
    "free_port",
    "kafka_command",
    "mongo_command",
    "start_kafka",
    "start_mongo",
    "start_tansu",
    "start_valkey",
    "tansu_command",
    "valkey_command",
]

_ATTEMPTS_ON_CHOSEN_PORTS = 3


async def start_tansu(
    port: int | None = None, cluster_id: str | None = None, *, log_file: Path | None = None
) -> ServerProcess:
    """The embedded broker. Its log lives in memory, so a cluster id that is not given is a new one."""
    name = cluster_id or f"embedded-{uuid.uuid4()}"
    return await _start(lambda chosen: tansu_command(port=chosen, cluster_id=name), port, log_file)


async def start_valkey(
    port: int | None = None, data_dir: Path | None = None, *, log_file: Path | None = None
) -> ServerProcess:
    """Valkey; with `data_dir` it writes an append-only file there and reads it at its next start."""
    return await _start(lambda chosen: valkey_command(port=chosen, data_dir=data_dir), port, log_file)


async def start_kafka(
    port: int | None, data_dir: Path, libs: Path, *, controller_port: int | None = None, log_file: Path | None = None
) -> ServerProcess:
    """One Apache Kafka node on `data_dir`, which is formatted at the first start. `libs` holds the jars."""

    def command(chosen: int) -> ServerCommand:
        controller = controller_port or free_port()
        return kafka_command(port=chosen, controller_port=controller, data_dir=data_dir, libs=libs)

    return await _start(command, port, log_file)


async def start_mongo(port: int | None, file: Path, libs: Path, *, log_file: Path | None = None) -> ServerProcess:
    """A MongoDB-wire server that keeps its data in `file`. `libs` holds the jars."""
    return await _start(lambda chosen: mongo_command(port=chosen, file=file, libs=libs), port, log_file)


async def _start(command: Callable[[int], ServerCommand], port: int | None, log_file: Path | None) -> ServerProcess:
    if port is not None:
        return await ServerProcess(command(port), log_file=log_file).start()
    for attempt in range(1, _ATTEMPTS_ON_CHOSEN_PORTS + 1):
        try:
            return await ServerProcess(command(free_port()), log_file=log_file).start()
        except ServerUnavailable:
            if attempt == _ATTEMPTS_ON_CHOSEN_PORTS:
                raise
    raise AssertionError("unreachable")
