"""Work that a process does again and again in the background."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from shared.observability.logs import get_logger

_log = get_logger("periodic")


class Periodic:
    """Component: runs `job` every `every_seconds` until stopped. A run that fails is logged; the next one goes on."""

    def __init__(self, name: str, job: Callable[[], Awaitable[object]], every_seconds: float) -> None:
        self._name = name
        self._job = job
        self._every_seconds = every_seconds
        self._runner: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._runner = asyncio.create_task(self._run(), name=self._name)

    async def stop(self, grace_seconds: float) -> None:
        """Ends the loop at once: a job must be safe to cut short, since a kill does the same."""
        if self._runner:
            self._runner.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._runner

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_seconds)
            try:
                await self._job()
            except Exception as error:
                # Only the class: messages of drivers may quote addresses and documents.
                _log.warning("periodic_job_failed", job=self._name, error=type(error).__name__)
