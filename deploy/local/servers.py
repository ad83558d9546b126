"""Servers as child processes, for tests and the local stack: started, waited for, stopped, and ended with their
parent.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.local.server_commands import (
    ServerCommand,
    ServerUnavailable,
    ensure_cluster_libs,
    free_port,
    kafka_command,
    mongo_command,
    port_is_taken,
    tansu_command,
    valkey_command,
)

_PR_SET_PDEATHSIG = 1
_OUTPUT_TAIL_BYTES = 2000
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent() -> Callable[[], None] | None:
    """A `preexec_fn`: the kernel kills the child when the thread that started it ends. None off Linux."""
    if _libc is None:
        return None
    libc, parent = _libc, os.getpid()

    def ask_the_kernel() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died in between
            os._exit(1)

    return ask_the_kernel


class ServerProcess:
    """A running server. `url` is what clients connect to. An async context manager that stops it at the end."""

    def __init__(self, command: ServerCommand, *, log_file: Path | None = None) -> None:
        self.command = command
        self._log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None
        self._own_log: str | None = None

    @property
    def url(self) -> str:
        return self.command.url

    @property
    def port(self) -> int:
        return self.command.port

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ServerUnavailable(f"{self.command.name} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def start(self) -> Self:
        """Starts it and returns when it answers; if it does not, raises `ServerUnavailable` with its last output."""
        if self.command.prepare is not None:
            await self.command.prepare()
        if port_is_taken(self.port):
            raise ServerUnavailable(f"{self.command.name} cannot start: port {self.port} is taken")
        log_path = self._log_path()
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - forking is quick; the wait below is not blocking
                self.command.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.command.env},
                start_new_session=True,  # a Ctrl-C at the terminal is for the parent to handle, in its order
                preexec_fn=die_with_parent(),
            )
        try:
            await self._wait_until_ready()
        except BaseException:
            await self.stop(grace_seconds=0)
            raise
        return self

    async def stop(self, grace_seconds: float = 10.0) -> None:
        """SIGTERM, then SIGKILL when `grace_seconds` have passed. Stopping twice is fine."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM if grace_seconds > 0 else signal.SIGKILL)
            if not await _ended(process, grace_seconds):
                process.kill()
                await _ended(process, 10.0)
        self._remove_own_log()

    async def kill(self) -> None:
        """SIGKILL, as a crash would end it; `start()` brings it back on the same port and data."""
        process = self._process
        if process is not None:
            process.kill()
            await _ended(process, 10.0)

    async def __aenter__(self) -> Self:
        return self if self.running else await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.command.start_timeout_seconds
        pause = 0.01
        while True:
            if not self.running:
                code = self._process.returncode if self._process else None
                raise ServerUnavailable(f"{self.command.name} ended at its start with code {code}:\n{self._tail()}")
            with contextlib.suppress(OSError, TimeoutError):
                await self.command.ready()
                return
            if time.monotonic() > deadline:
                limit = self.command.start_timeout_seconds
                raise ServerUnavailable(f"{self.command.name} did not answer within {limit:.0f} s:\n{self._tail()}")
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.2)

    def _log_path(self) -> Path:
        if self._log_file is not None:
            self._log_file.parent.mkdir(parents=True, exist_ok=True)
            return self._log_file
        if self._own_log is None:
            handle, self._own_log = tempfile.mkstemp(prefix=f"{self.command.name}-", suffix=".log")
            os.close(handle)
        return Path(self._own_log)

    def _tail(self) -> str:
        log_path = self._log_path()
        text = log_path.read_bytes()[-_OUTPUT_TAIL_BYTES:].decode(errors="replace").strip()
        return text or "(it wrote nothing)"

    def _remove_own_log(self) -> None:
        if self._own_log is not None:
            Path(self._own_log).unlink(missing_ok=True)
            self._own_log = None


async def _ended(process: subprocess.Popen[bytes], within_seconds: float) -> bool:
    deadline = time.monotonic() + within_seconds
    while process.poll() is None:
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(0.02)
    return True


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
