"""Runs one part of the stack as a child process and restarts it when it dies."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from deploy.local.part_logs import PartLog
from deploy.local.processes import ChildProcess, ServerCommand, ServerUnavailable

_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0
_CRASH_LOOP_AFTER = 8
_CRASH_LOOP_PAUSE_SECONDS = 15.0
_STEADY_AFTER_SECONDS = 20.0
_LOG_DRAIN_SECONDS = 1.0


@dataclass(frozen=True)
class Part:
    """How to run one part. `command` is called at each start; `after_start` runs each time the part became ready."""

    name: str
    command: Callable[[], ServerCommand]
    environment: Mapping[str, str]
    after_start: Callable[[], Awaitable[None]] | None = None
    memory_limit_mb: int | None = None


@dataclass
class PartState:
    """The state of one part, as `status` shows it."""

    state: str = "stopped"
    pid: int | None = None
    address: str = ""
    restarts: int = 0
    started_at: float = field(default_factory=time.time)

    def to_json(self) -> dict[str, object]:
        return dict(vars(self))


class RestartPauses:
    """Pauses between restarts: they double with each early death, and are long and constant in a crash loop.

    A run of 20 s or longer resets them.
    """

    def __init__(self) -> None:
        self._early_deaths = 0

    @property
    def crash_loop(self) -> bool:
        return self._early_deaths >= _CRASH_LOOP_AFTER

    def after_death(self, ran_seconds: float) -> float:
        """The pause in seconds before the next start of a process that ran for `ran_seconds`."""
        if ran_seconds >= _STEADY_AFTER_SECONDS:
            self._early_deaths = 0
        self._early_deaths += 1
        if self.crash_loop:
            return _CRASH_LOOP_PAUSE_SECONDS
        pause: float = _FIRST_PAUSE_SECONDS * 2 ** (self._early_deaths - 1)
        return min(pause, _LONGEST_PAUSE_SECONDS)


class ManagedProcess:
    """Runs one `Part`. `say` prints lines for the operator; `changed` is called whenever `status` would differ.

    `during_restart` is entered while a dead process is being restarted.
    """

    def __init__(
        self,
        part: Part,
        log: PartLog,
        say: Callable[[str], None],
        changed: Callable[[], None],
        start_limit: float,
        during_restart: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.part, self._log, self._say, self._changed, self._start_limit = part, log, say, changed, start_limit
        self._during_restart = during_restart
        self.status = PartState()
        self._child: ChildProcess | None = None
        self._log_copy: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._replacing = False

    async def start(self) -> None:
        """Returns when the part is ready. Otherwise raises ServerUnavailable and leaves no process."""
        try:
            await self._spawn()
            await self._wait_until_ready()
            if self.part.after_start is not None:
                await self.part.after_start()
        except OSError as error:
            await self._end(0)
            raise ServerUnavailable(f"{self.part.name} could not be started: {error}") from error
        except BaseException:
            await self._end(0)
            raise
        self._set("ready")

    def keep_alive(self) -> None:
        """Restarts the process whenever it ends, until `stop`."""
        self._keeper = asyncio.create_task(self._keep_alive(), name=f"keep {self.part.name}")

    def replace(self, why: str) -> None:
        """Kills the process; `keep_alive` starts a new one without a pause."""
        if self._child is not None and self._child.running and not self._replacing:
            self._say(f"{self.part.name} is being replaced: {why}")
            self._replacing = True
            self._child.kill()

    async def stop(self, grace_seconds: float) -> None:
        """Sends SIGTERM, then SIGKILL after `grace_seconds`. The process is not restarted."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        if self._child is not None and self._child.running:
            self._set("stopping")
        await self._end(grace_seconds)
        self._set("stopped")

    def close(self) -> None:
        """Closes the log, after the last `stop`."""
        self._log.close()

    def kill(self) -> None:
        """Sends SIGKILL at once."""
        if self._child is not None:
            self._child.kill()

    async def _spawn(self) -> None:
        command = self.part.command()
        child = await ChildProcess.spawn(command, self.part.environment, asyncio.subprocess.PIPE)
        self._child = child
        self._log_copy = asyncio.create_task(_copy(child.stdout, self._log), name=f"log of {self.part.name}")
        self.status.pid, self.status.address, self.status.started_at = child.pid, command.url, time.time()
        self._set("starting")

    async def _wait_until_ready(self) -> None:
        assert self._child is not None  # noqa: S101 - spawned by the caller
        try:
            await self._child.wait_until_ready(self._start_limit)
        except ServerUnavailable as error:
            if not self._child.running:
                await self._finish_log()
            raise ServerUnavailable(f"{error}{self._last_lines()}") from None

    async def _keep_alive(self) -> None:
        pauses = RestartPauses()
        reported = False
        while True:
            await self._until_ended()
            ran = time.time() - self.status.started_at
            if self._replacing:
                self._replacing, pause = False, 0.0
            else:
                pause = pauses.after_death(ran)
                if pauses.crash_loop and not reported:
                    self._say(f"{self.part.name} keeps dying; trying again every {pause:.0f} s.{self._last_lines()}")
                elif not pauses.crash_loop:
                    ending = self._child.ending() if self._child is not None else "not running"
                    self._say(f"{self.part.name} ended ({ending}); starting it again in {pause:.1f} s")
                reported = pauses.crash_loop
            self._set("crash loop" if pauses.crash_loop else "restarting")
            await asyncio.sleep(pause)
            await self._restart(quiet=pauses.crash_loop)

    async def _restart(self, *, quiet: bool) -> None:
        begun = time.monotonic()
        self.status.restarts += 1
        try:
            with self._during_restart():
                await self.start()
            self._say(f"{self.part.name} is ready again after {time.monotonic() - begun:.1f} s (pid {self.status.pid})")
        except ServerUnavailable as error:
            if not quiet:
                self._say(str(error))

    async def _until_ended(self) -> None:
        if self._child is not None:
            await self._child.wait()
            await self._finish_log()

    async def _end(self, grace_seconds: float) -> None:
        if self._child is not None and await self._child.stop(grace_seconds):
            self._say(f"{self.part.name} did not end within {grace_seconds:.0f} s and is killed")
        await self._finish_log()

    async def _finish_log(self) -> None:
        if self._log_copy is not None:
            await asyncio.wait([self._log_copy], timeout=_LOG_DRAIN_SECONDS)
            self._log_copy.cancel()
            self._log_copy = None

    def _set(self, state: str) -> None:
        self.status.state = state
        if state == "stopped":
            self.status.pid = None
        self._changed()

    def _last_lines(self) -> str:
        lines = list(self._log.tail)
        if not lines:
            return " It wrote nothing."
        return "\nThe last lines of its output:\n" + "\n".join(f"    {line}" for line in lines)


async def _copy(stream: asyncio.StreamReader, log: PartLog) -> None:
    while data := await stream.read(65536):
        log.feed(data)
    log.flush()
