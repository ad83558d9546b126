"""One part of the stack as a child process: started, watched, restarted when it dies, stopped."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from deploy.local.part_logs import PartLog
from deploy.local.server_commands import ServerCommand, ServerUnavailable
from deploy.local.servers import die_with_parent

_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0
_CRASH_LOOP_AFTER = 8
_CRASH_LOOP_PAUSE_SECONDS = 15.0
_STEADY_AFTER_SECONDS = 20.0


class RestartPauses:
    """Fast at first, slower with each quick death, slow and steady in a crash loop; a steady run starts over."""

    def __init__(self) -> None:
        self._quick_deaths = 0

    @property
    def crash_loop(self) -> bool:
        return self._quick_deaths >= _CRASH_LOOP_AFTER

    def after_death(self, ran_seconds: float) -> float:
        """The pause in seconds before the next start of a process that ran for `ran_seconds`."""
        if ran_seconds >= _STEADY_AFTER_SECONDS:
            self._quick_deaths = 0
        self._quick_deaths += 1
        if self.crash_loop:
            return _CRASH_LOOP_PAUSE_SECONDS
        pause: float = _FIRST_PAUSE_SECONDS * 2 ** (self._quick_deaths - 1)
        return min(pause, _LONGEST_PAUSE_SECONDS)


_POLL_SECONDS = 0.05
_KILL_SECONDS = 10.0


class StartFailed(RuntimeError):
    """A part could not be started. The message says which one and why."""


@dataclass(frozen=True)
class Part:
    """How to run one part. `command` is asked at each start; `after_start` runs each time it has become ready."""

    name: str
    command: Callable[[], ServerCommand]
    environment: Mapping[str, str]
    after_start: Callable[[], Awaitable[None]] | None = None
    memory_limit_mb: int | None = None


@dataclass
class PartState:
    """What `status` shows of one part."""

    state: str = "stopped"
    pid: int | None = None
    address: str = ""
    restarts: int = 0
    started_at: float = field(default_factory=time.time)

    def to_json(self) -> dict[str, object]:
        return dict(vars(self))


class ManagedProcess:
    """Runs one `Part`. `say` takes lines for the operator; `changed` is called when `status` would show a change.

    `during_restart` is entered while a process that has died is started again.
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
        self._process: asyncio.subprocess.Process | None = None
        self._pump: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._replacing = False

    async def start(self) -> None:
        """Starts the process and returns when it is ready. Raises StartFailed and leaves no process otherwise."""
        try:
            command = self.part.command()
            if command.prepare is not None:
                await command.prepare()
            await self._spawn(command)
            await self._wait_until_ready(command)
            if self.part.after_start is not None:
                await self.part.after_start()
        except (OSError, ServerUnavailable) as error:
            await self._end(0)
            raise StartFailed(f"{self.part.name} could not be started: {error}") from error
        except BaseException:
            await self._end(0)
            raise
        self._set("ready")

    def keep_alive(self) -> None:
        """From now on, a process that ends is started again."""
        self._keeper = asyncio.create_task(self._keep_alive(), name=f"keep {self.part.name}")

    def replace(self, why: str) -> None:
        """Kills the process; a new one takes its place at once."""
        if self._process is not None and self._process.returncode is None and not self._replacing:
            self._say(f"{self.part.name} is being replaced: {why}")
            self._replacing = True
            self._process.kill()

    async def stop(self, grace_seconds: float) -> None:
        """SIGTERM, and SIGKILL after `grace_seconds`. Nothing is started again after this."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        if self._process is not None and self._process.returncode is None:
            self._set("stopping")
        await self._end(grace_seconds)
        self._set("stopped")

    def close(self) -> None:
        """After the last `stop`: closes the log."""
        self._log.close()

    def kill(self) -> None:
        """SIGKILL at once, for an operator in a hurry."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _spawn(self, command: ServerCommand) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *command.argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**self.part.environment, **command.env},
            start_new_session=True,  # Ctrl-C at the terminal is the supervisor's to handle, in its order
            preexec_fn=die_with_parent(),
        )
        assert self._process.stdout is not None  # noqa: S101 - asked for above
        self._pump = asyncio.create_task(_pump(self._process.stdout, self._log), name=f"log of {self.part.name}")
        self.status.pid, self.status.address, self.status.started_at = self._process.pid, command.url, time.time()
        self._set("starting")

    async def _wait_until_ready(self, command: ServerCommand) -> None:
        process = self._process
        assert process is not None  # noqa: S101 - spawned by the caller
        deadline = time.monotonic() + self._start_limit
        last = "it did not answer"
        while True:
            if process.returncode is not None:
                await self._drain_log()
                raise StartFailed(
                    f"{self.part.name} ended at its start, {_how(process.returncode)}.{self._last_lines()}"
                )
            try:
                await command.ready()
            except (OSError, TimeoutError) as error:
                last = str(error) or last
            else:
                if process.returncode is None:
                    return
            if time.monotonic() > deadline:
                raise StartFailed(
                    f"{self.part.name} was not ready within {self._start_limit:.0f} s ({last}).{self._last_lines()}"
                )
            await asyncio.sleep(_POLL_SECONDS)

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
                    self._say(f"{self.part.name} ended ({self._ending()}); starting it again in {pause:.1f} s")
                reported = pauses.crash_loop
            self._set("crash loop" if pauses.crash_loop else "restarting")
            await asyncio.sleep(pause)
            await self._start_again(quiet=pauses.crash_loop)

    async def _start_again(self, *, quiet: bool) -> None:
        begun = time.monotonic()
        self.status.restarts += 1
        try:
            with self._during_restart():
                await self.start()
            self._say(f"{self.part.name} is ready again after {time.monotonic() - begun:.1f} s (pid {self.status.pid})")
        except StartFailed as error:
            if not quiet:
                self._say(str(error))

    async def _until_ended(self) -> None:
        if self._process is not None:
            await self._process.wait()
            await self._drain_log()

    async def _end(self, grace_seconds: float) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM if grace_seconds > 0 else signal.SIGKILL)
            try:
                await asyncio.wait_for(process.wait(), max(grace_seconds, 0.01))
            except TimeoutError:
                if grace_seconds > 0:
                    self._say(f"{self.part.name} did not end within {grace_seconds:.0f} s and is killed")
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await asyncio.wait_for(process.wait(), _KILL_SECONDS)
        await self._drain_log()

    async def _drain_log(self) -> None:
        if self._pump is not None:
            await asyncio.wait([self._pump], timeout=1.0)
            self._pump.cancel()
            self._pump = None

    def _set(self, state: str) -> None:
        self.status.state = state
        if state == "stopped":
            self.status.pid = None
        self._changed()

    def _ending(self) -> str:
        code = self._process.returncode if self._process is not None else None
        return "not running" if code is None else _how(code)

    def _last_lines(self) -> str:
        lines = list(self._log.tail)
        if not lines:
            return " It wrote nothing."
        return "\nThe last lines of its output:\n" + "\n".join(f"    {line}" for line in lines)


async def _pump(stream: asyncio.StreamReader, log: PartLog) -> None:
    while data := await stream.read(65536):
        log.feed(data)
    log.flush()


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"
