"""The server-sent events of one upgrade: from its Redis stream, or rebuilt from its result where that is lost."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from redis.exceptions import RedisError

from services.gateway.upgrades.accepted_record import AcceptedRecord
from services.gateway.upgrades.stage_clients import ResultsUnavailable, UpgradeResults
from services.gateway.upgrades.views import UpgradeViews
from services.gateway.upgrades.waiting import Waiters
from shared.contracts.problems import WarningCode
from shared.contracts.upgrade_results import (
    ACCEPTED_STEP,
    COMPLETED_STEP,
    StageProgress,
    StageState,
    UpgradeResult,
    stage_step,
)
from shared.contracts.upgrade_tasks import Stage
from shared.messaging.publish.progress import ProgressLog, UpgradeEvent
from shared.observability.logs import get_logger

LONGEST_STREAM_SECONDS = 900.0
_LOOK_AGAIN_SECONDS = 3.0
_BLOCK_MS = 1_000
_SKIPPED_BY: dict[Stage, str] = {
    Stage.SUMMARIZER: WarningCode.SUMMARY_SKIPPED,
    Stage.RAG: WarningCode.RETRIEVAL_SKIPPED,
}

log = get_logger(__name__)


class Readable(Protocol):
    async def __call__(self, *, when_unknown: bool) -> bool:
        """Whether who follows may still read the upgrade: it is not erased, and nobody has shut them out."""


class EventStreams:
    """Makes the event streams of upgrades. A stream that has nothing to say sends a comment every `comment_seconds`."""

    def __init__(
        self,
        progress: ProgressLog,
        results: UpgradeResults,
        waiters: Waiters,
        views: UpgradeViews,
        draining: Callable[[], bool],
        comment_seconds: float = 15.0,
    ) -> None:
        self._progress = progress
        self._results = results
        self._waiters = waiters
        self._views = views
        self._draining = draining
        self._comment_seconds = comment_seconds

    async def follow(self, record: AcceptedRecord, after_step: int, readable: Readable) -> AsyncIterator[bytes]:
        """The events after `after_step` as they happen; ends after `completed`, or when the process has to end.

        Ends as well, without another word, once the upgrade is not `readable` any more.
        """
        step = after_step
        if step < ACCEPTED_STEP:
            step = ACCEPTED_STEP
            yield _event(step, "accepted", self._views.of(record, None).to_json())
        waiter = self._waiters.join(record.upgrade_id)
        try:
            waiter.wake_if(await self._ask(record))
            started = spoke = looked = time.monotonic()
            while not self._draining() and time.monotonic() - started < LONGEST_STREAM_SECONDS:
                ended = waiter.result()
                happened = await self._read(record, step, None if ended else _BLOCK_MS)
                for entry in happened:
                    if entry.event == "stage" and entry.step > step:
                        step, spoke = entry.step, time.monotonic()
                        yield _event(entry.step, entry.event, entry.data)
                if ended:
                    if not await readable(when_unknown=False):
                        return
                    for event in self._rest(record, ended, step):
                        yield event
                    return
                if any(entry.event == "completed" for entry in happened):
                    waiter.wake_if(await self._ask(record))
                    await asyncio.sleep(0 if waiter.result() else _BLOCK_MS / 1000)
                if time.monotonic() - looked >= _LOOK_AGAIN_SECONDS:
                    looked = time.monotonic()
                    if not await readable(when_unknown=True):
                        return
                if time.monotonic() - spoke >= self._comment_seconds:
                    spoke = time.monotonic()
                    yield b": still here\n\n"
        finally:
            self._waiters.leave(waiter)

    async def _read(self, record: AcceptedRecord, step: int, block_ms: int | None) -> list[UpgradeEvent]:
        try:
            return await self._progress.read(record.tenant_id, record.upgrade_id, step, block_ms)
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("event_stream_not_read", error=type(error).__name__)
            await asyncio.sleep((block_ms or 0) / 1000)
            return []

    async def _ask(self, record: AcceptedRecord) -> UpgradeResult | None:
        try:
            return await self._results.find(record.upgrade_id)
        except ResultsUnavailable:
            return None

    def _rest(self, record: AcceptedRecord, result: UpgradeResult, step: int) -> list[bytes]:
        """What is left to say of an upgrade that has ended: stages that were not heard of, and its end."""
        events = [
            _event(stage_step(progress.stage, progress.state), "stage", progress.to_json())
            for progress in stages_of(record, result)
            if stage_step(progress.stage, progress.state) > step
        ]
        if step < COMPLETED_STEP:
            events.append(_event(COMPLETED_STEP, "completed", self._views.of(record, result).to_json()))
        return events


def stages_of(record: AcceptedRecord, result: UpgradeResult) -> list[StageProgress]:
    """How each stage of an ended upgrade went, as far as its result tells."""
    skipped = {warning.code for warning in result.warnings}
    found = []
    for stage in record.stages():
        state: StageState = "skipped" if _SKIPPED_BY.get(stage) in skipped else "finished"
        latencies = [usage.latency_ms for usage in result.usage if usage.component == stage.value]
        found.append(StageProgress(stage=stage, state=state, latency_ms=sum(latencies) if latencies else None))
    return found


def _event(step: int, name: str, data: bytes) -> bytes:
    # JSON written by pydantic and orjson is one line.
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (step, name.encode(), data)
