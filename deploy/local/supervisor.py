"""Starts the parts of a stack, restarts those that die, and stops all of them in an order that loses no work."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from deploy.local.data_folder import ENDPOINTS_FILE, SUPERVISOR_FILE, write_json
from deploy.local.managed_process import ManagedProcess, Part
from deploy.local.part_logs import OperatorOutput, PartLog, RotatedFile
from deploy.local.processes import ServerUnavailable, resident_mb, run_to_end
from deploy.local.settings import LocalSettings
from deploy.local.stack_plan import SERVICES, StackPlan
from deploy.local.startup_steps import create_topics

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SERVER_GRACE_SECONDS = 10.0
_MEMORY_CHECK_SECONDS = 1.0
_MB = 1024 * 1024
_DRAIN_MARGIN_SECONDS = 5.0
_LEAST_GRACE_SECONDS = 5.0
# A signal to the process group may arrive twice: directly, and through make.
_SAME_REQUEST_SECONDS = 1.0


class Supervisor:
    """Runs one stack until a signal stops it."""

    def __init__(self, settings: LocalSettings, plan: StackPlan, output: OperatorOutput) -> None:
        self._settings, self._plan, self._output = settings, plan, output
        self._started_at = time.time()
        self._ready = False
        self._stop = asyncio.Event()
        self._stop_requested_at = 0.0
        self._processes = {name: self._managed(part) for name, part in plan.parts.items()}

    async def run(self, sample: Sequence[str] | None) -> int:
        """Starts all parts, runs the `sample` command once, and serves until a signal. Returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        try:
            return await self._run(sample)
        finally:
            await self._stop_all()
            for number in _STOP_SIGNALS:
                loop.remove_signal_handler(number)
            for process in self._processes.values():
                process.close()

    async def _run(self, sample: Sequence[str] | None) -> int:
        starting = asyncio.create_task(self._start_all())
        if not await self._unless_stopped(starting):
            return 0
        try:
            starting.result()
        except ServerUnavailable as error:
            self._output.failed(str(error))
            return 1
        watching = asyncio.create_task(self._watch_memory())
        self._output.say(f"ready after {time.time() - self._started_at:.1f} s")
        if sample is not None:
            await self._unless_stopped(asyncio.create_task(self._run_sample(sample)))
        self._output.ready()
        await self._stop.wait()
        watching.cancel()
        return 0

    async def _start_all(self) -> None:
        """Starts the servers and the model, then the services. Raises the error of the first part that fails."""
        names = set(self._processes)
        try:
            async with asyncio.TaskGroup() as group:
                if "model" in names:
                    group.create_task(self._start("model"))
                servers = [group.create_task(self._start(name)) for name in names - {"model", *SERVICES}]
                if "broker" not in names:
                    servers.append(group.create_task(create_topics(self._plan.environment)))
                await asyncio.gather(*servers)
                for name in SERVICES:
                    group.create_task(self._start(name))
        except ExceptionGroup as failures:
            failed, rest = failures.split(ServerUnavailable)
            raise (failed or rest or failures).exceptions[0] from None
        for process in self._processes.values():
            process.keep_alive()
        self._ready = True
        self._publish()

    async def _start(self, name: str) -> None:
        started = time.monotonic()
        await self._processes[name].start()
        self._output.say(f"{name} is ready after {time.monotonic() - started:.1f} s")

    async def _unless_stopped(self, task: "asyncio.Task[None]") -> bool:
        """Waits for the task and returns True. On a stop signal, cancels it and returns False."""
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if task.done():
            return True
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, BaseExceptionGroup):
            await task
        return False

    async def _run_sample(self, command: Sequence[str]) -> None:
        code, _ = await run_to_end(
            "sample", command, environment=self._plan.environment, limit_seconds=None, output=None
        )
        if code != 0:
            self._output.say("the sample prompt was not upgraded; the stack keeps running, its logs say more")

    async def _watch_memory(self) -> None:
        while True:
            await asyncio.sleep(_MEMORY_CHECK_SECONDS)
            for process in self._processes.values():
                limit, pid = process.part.memory_limit_mb, process.status.pid
                if limit is not None and pid is not None and (used := resident_mb(pid)) > limit:
                    process.replace(f"it uses {used:.0f} MB, the limit is {limit} MB")

    async def _stop_all(self) -> None:
        running = [name for name, process in self._processes.items() if process.status.pid is not None]
        if running:
            self._output.say("stopping")
        self._data_file(ENDPOINTS_FILE).unlink(missing_ok=True)
        deadline = time.monotonic() + self._settings.shutdown_grace_seconds + _DRAIN_MARGIN_SECONDS
        # In pipeline order: each service can still finish what the one before it passed on while it drained.
        for service in SERVICES if self._ready else ():
            await self._processes[service].stop(max(deadline - time.monotonic(), _LEAST_GRACE_SECONDS))
        rest = [process for name, process in self._processes.items() if name not in SERVICES or not self._ready]
        await asyncio.gather(*(process.stop(_SERVER_GRACE_SECONDS) for process in rest))
        self._data_file(SUPERVISOR_FILE).unlink(missing_ok=True)
        if running:
            self._output.say("everything has ended")

    def _on_signal(self) -> None:
        now = time.monotonic()
        if not self._stop.is_set():
            self._stop_requested_at = now
            self._stop.set()
        elif now - self._stop_requested_at > _SAME_REQUEST_SECONDS:
            self._output.say("ending at once")
            for process in self._processes.values():
                process.kill()

    def _managed(self, part: Part) -> ManagedProcess:
        path = self._settings.data_dir / "logs" / f"{part.name}.log"
        file = RotatedFile(path, int(self._settings.local_log_file_mb * _MB), self._settings.local_log_files)
        log = PartLog(file, partial(self._output.part_line, part.name))
        limit = self._settings.local_start_timeout_seconds
        embedded_broker = part.name == "broker" and not self._plan.cluster
        during_restart = self._services_paused if embedded_broker else contextlib.nullcontext
        return ManagedProcess(part, log, self._output.say, self._publish, limit, during_restart)

    @contextlib.contextmanager
    def _services_paused(self) -> Iterator[None]:
        """Pauses the services while the embedded broker restarts without its topics.

        The broker confirms a record for a topic that does not exist yet, and loses it.
        """
        paused = [pid for name in SERVICES if (pid := self._processes[name].status.pid) is not None]
        try:
            for pid in paused:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in paused:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def _publish(self) -> None:
        parts = {name: process.status.to_json() for name, process in self._processes.items()}
        write_json(
            self._data_file(SUPERVISOR_FILE),
            {
                "pid": os.getpid(),
                "startedAt": self._started_at,
                "cluster": self._plan.cluster,
                "ready": self._ready,
                "parts": parts,
            },
        )
        if self._ready and not self._stop.is_set():
            pids = {name: process.status.pid for name, process in self._processes.items()}
            known = {name: pid for name, pid in pids.items() if pid is not None}
            write_json(self._data_file(ENDPOINTS_FILE), self._plan.endpoints(known))

    def _data_file(self, name: str) -> Path:
        return self._settings.data_dir / name
