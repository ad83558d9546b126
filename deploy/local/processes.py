"""Processes on this machine: starts a child, waits until it is ready, stops it, and inspects any process by its id."""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

from deploy.local.readiness import NotReady

_PR_SET_PDEATHSIG = 1
_FIRST_POLL_SECONDS = 0.01
_LONGEST_POLL_SECONDS = 0.05
_KILL_SECONDS = 10.0
_KB_PER_MB = 1024
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class ServerUnavailable(RuntimeError):
    """A server could not be installed, started or reached in time. The message is written for the operator."""


@dataclass(frozen=True)
class ServerCommand:
    """How to run one server.

    `ready` raises OSError or TimeoutError until the server answers. `prepare`, if set, has to succeed before each
    start; it may take seconds. `env` is added to the environment.
    """

    name: str
    argv: tuple[str, ...]
    port: int
    url: str
    ready: Callable[[], Awaitable[None]]
    start_timeout_seconds: float = 15.0
    env: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[], Awaitable[None]] | None = None


class ChildProcess:
    """A running server in a session of its own. The kernel kills it when this process ends, however it ends."""

    def __init__(self, command: ServerCommand, process: asyncio.subprocess.Process) -> None:
        self.command, self._process = command, process

    @classmethod
    async def spawn(cls, command: ServerCommand, environment: Mapping[str, str], output: int | IO[bytes]) -> Self:
        """Prepares and starts the server. `output`, a file or `asyncio.subprocess.PIPE`, takes stdout and stderr.

        Raises OSError, or ServerUnavailable when the preparation fails.
        """
        if command.prepare is not None:
            await command.prepare()
        process = await asyncio.create_subprocess_exec(
            *command.argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            env={**environment, **command.env},
            start_new_session=True,  # a Ctrl-C at the terminal reaches the parent alone, which stops children in order
            preexec_fn=die_with_parent(),
        )
        return cls(command, process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    @property
    def stdout(self) -> asyncio.StreamReader:
        """The output of a child that was spawned with a pipe."""
        assert self._process.stdout is not None  # noqa: S101 - see above
        return self._process.stdout

    async def wait_until_ready(self, limit_seconds: float) -> None:
        """Returns when the server answers. Raises ServerUnavailable when it ends first or exceeds the limit."""
        deadline = time.monotonic() + limit_seconds
        pause, reason = _FIRST_POLL_SECONDS, ""
        while self.running:
            try:
                await self.command.ready()
            except NotReady as error:
                reason = str(error)
            except (OSError, TimeoutError) as error:
                reason = f"it did not answer: {str(error) or type(error).__name__}"
            else:
                if self.running:
                    return
            if time.monotonic() > deadline:
                raise ServerUnavailable(f"{self.command.name} was not ready within {limit_seconds:.0f} s ({reason}).")
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_POLL_SECONDS)
        raise ServerUnavailable(f"{self.command.name} ended at its start, {self.ending()}.")

    async def wait(self) -> None:
        """Returns when the process has ended."""
        await self._process.wait()

    async def stop(self, grace_seconds: float) -> bool:
        """Sends SIGTERM, then SIGKILL after `grace_seconds` (0: at once). Returns whether the grace was exceeded."""
        if not self.running:
            return False
        if grace_seconds > 0:
            self._send(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), grace_seconds)
                return False
        self.kill()
        await asyncio.wait_for(self._process.wait(), _KILL_SECONDS)
        return grace_seconds > 0

    def kill(self) -> None:
        """Sends SIGKILL without waiting."""
        self._send(signal.SIGKILL)

    def ending(self) -> str:
        """How the process ended, for the operator: its exit code, or the signal that ended it."""
        code = self._process.returncode
        if code is None:
            return "not yet"
        if code >= 0:
            return f"exit code {code}"
        try:
            return f"by {signal.Signals(-code).name}"
        except ValueError:
            return f"by signal {-code}"

    def _send(self, number: signal.Signals) -> None:
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


async def run_to_end(
    name: str,
    argv: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    limit_seconds: float | None,
    output: int | None = asyncio.subprocess.PIPE,
) -> tuple[int, str]:
    """Runs a command and returns its exit code and its output; `output=None` leaves the output on the terminal.

    Raises ServerUnavailable, which starts with `name`, when the command exceeds the limit. The command is killed when
    the wait ends early.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=asyncio.subprocess.STDOUT if output is not None else None,
        preexec_fn=die_with_parent(),
    )
    try:
        async with asyncio.timeout(limit_seconds):
            written, _ = await process.communicate()
    except TimeoutError:
        raise ServerUnavailable(f"{name} did not finish within {limit_seconds:.0f} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    return await process.wait(), (written or b"").decode(errors="replace").strip()


def die_with_parent() -> Callable[[], None] | None:
    """Returns a `preexec_fn`: the kernel kills the child when the thread that started it ends. None outside Linux."""
    if _libc is None:
        return None
    libc, parent = _libc, os.getpid()

    def request_death_signal() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the request
            os._exit(1)

    return request_death_signal


def resident_mb(pid: int) -> float:
    """Resident memory in MB; 0 when the process is gone or the system has no /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / _KB_PER_MB
    return 0.0


def is_running(pid: int) -> bool:
    """Whether the process exists. A zombie, which has ended and waits to be reaped, does not count."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    except OSError:
        # With /proc, the process ended between the two checks; without /proc, the signal has shown that it exists.
        return not Path("/proc/self").exists()
