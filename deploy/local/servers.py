"""Runs single servers for tests and benchmarks: broker, Redis, MongoDB, or any other command."""

import os
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from deploy.local.ports import HOST, free_port, port_is_free
from deploy.local.processes import ChildProcess, ServerCommand, ServerUnavailable
from deploy.local.server_commands import kafka_command, mongo_command, tansu_command, valkey_command

_OUTPUT_TAIL_BYTES = 2000
_ATTEMPTS_ON_FREE_PORTS = 3


class ServerProcess:
    """A server as an async context manager that stops it on exit. Clients connect to `url`."""

    def __init__(self, command: ServerCommand, *, log_file: Path | None = None) -> None:
        self.command, self._log_file = command, log_file
        self._child: ChildProcess | None = None

    @property
    def url(self) -> str:
        return self.command.url

    @property
    def port(self) -> int:
        return self.command.port

    @property
    def pid(self) -> int:
        if self._child is None:
            raise ServerUnavailable(f"{self.command.name} is not running")
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    async def start(self) -> Self:
        """Starts the server and returns when it answers. Raises ServerUnavailable with its last output otherwise."""
        if not port_is_free(HOST, self.port):
            raise ServerUnavailable(f"{self.command.name} cannot start: port {self.port} is taken")
        with self._open_log() as log:
            self._child = await ChildProcess.spawn(self.command, os.environ, log)
            try:
                await self._child.wait_until_ready(self.command.start_timeout_seconds)
            except ServerUnavailable as error:
                await self.stop(grace_seconds=0)
                raise ServerUnavailable(f"{error}\n{_tail(log)}") from None
            except BaseException:
                await self.stop(grace_seconds=0)
                raise
        return self

    async def stop(self, grace_seconds: float = 10.0) -> None:
        """Sends SIGTERM, then SIGKILL after `grace_seconds`. Does nothing when the server has been stopped."""
        child, self._child = self._child, None
        if child is not None:
            await child.stop(grace_seconds)

    async def kill(self) -> None:
        """Sends SIGKILL, like a crash; `start()` runs the server again on the same port and data."""
        if self._child is not None:
            await self._child.stop(0)

    async def __aenter__(self) -> Self:
        return self if self.running else await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _open_log(self) -> IO[bytes]:
        if self._log_file is None:
            return tempfile.TemporaryFile()
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        return self._log_file.open("a+b")


async def start_tansu(port: int | None = None, cluster_id: str | None = None) -> ServerProcess:
    """Starts the embedded broker. It keeps its log in memory, so the default cluster id is a new one."""
    name = cluster_id or f"embedded-{uuid.uuid4()}"
    return await _start(lambda chosen: tansu_command(port=chosen, cluster_id=name), port)


async def start_valkey(port: int | None = None, data_dir: Path | None = None) -> ServerProcess:
    """Starts Valkey. With `data_dir` it writes an append-only file there and reads it at its next start."""
    return await _start(lambda chosen: valkey_command(port=chosen, data_dir=data_dir), port)


async def start_kafka(data_dir: Path, libs: Path) -> ServerProcess:
    """Starts one Apache Kafka node on `data_dir`, which the first start formats. `libs` holds the jars."""
    return await _start(
        lambda chosen: kafka_command(port=chosen, controller_port=free_port(), data_dir=data_dir, libs=libs)
    )


async def start_mongo(file: Path, libs: Path) -> ServerProcess:
    """Starts a MongoDB-wire server that keeps its data in `file`. `libs` holds the jars."""
    return await _start(lambda chosen: mongo_command(port=chosen, file=file, libs=libs))


async def _start(command: Callable[[int], ServerCommand], port: int | None = None) -> ServerProcess:
    if port is not None:
        return await ServerProcess(command(port)).start()
    for _ in range(_ATTEMPTS_ON_FREE_PORTS - 1):  # another process may take a free port first
        try:
            return await ServerProcess(command(free_port())).start()
        except ServerUnavailable:
            continue
    return await ServerProcess(command(free_port())).start()


def _tail(log: IO[bytes]) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - _OUTPUT_TAIL_BYTES))
    return log.read().decode(errors="replace").strip() or "(no output)"
