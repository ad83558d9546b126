"""Server-sent events of one upgrade, read from its Redis stream, or made from its result where the stream is lost."""

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
_CHECK_ACCESS_SECONDS = 3.0
_COMMENT_SECONDS = 15.0
_BLOCK_MS = 1_000
_SKIPPED_BY: dict[Stage, str] = {
    Stage.SUMMARIZER: WarningCode.SUMMARY_SKIPPED,
    Stage.RAG: WarningCode.RETRIEVAL_SKIPPED,
}

log = get_logger(__name__)


class Readable(Protocol):
    async def __call__(self, *, when_unknown: bool) -> bool:
        """Whether the client may still read the upgrade: it is not erased, and the client still has access.

        Returns `when_unknown` while that cannot be checked.
        """


class EventStreams:
    """Makes the event streams of upgrades. A stream without events sends a comment every 15 s."""

    def __init__(
        self,
        progress: ProgressLog,
        results: UpgradeResults,
        waiters: Waiters,
        views: UpgradeViews,
        draining: Callable[[], bool],
    ) -> None:
        self._progress = progress
        self._results = results
        self._waiters = waiters
        self._views = views
        self._draining = draining

    async def follow(self, record: AcceptedRecord, after_step: int, readable: Readable) -> AsyncIterator[bytes]:
        """The events after `after_step` as they happen, encoded. Ends after `completed`, or when the process drains.

        Also ends, without a further event, when the upgrade is not `readable` any more.
        """
        step = after_step
        if step < ACCEPTED_STEP:
            step = ACCEPTED_STEP
            yield _event(step, "accepted", self._views.of(record, None).to_json())
        waiter = self._waiters.join(record.upgrade_id)
        try:
            waiter.wake_if(await self._find_result(record))
            started = sent_at = checked_at = time.monotonic()
            while not self._draining() and time.monotonic() - started < LONGEST_STREAM_SECONDS:
                ended = waiter.result()
                happened = await self._read(record, step, None if ended else _BLOCK_MS)
                for entry in happened:
                    if entry.event == "stage" and entry.step > step:
                        step, sent_at = entry.step, time.monotonic()
                        yield _event(entry.step, entry.event, entry.data)
                if ended:
                    if not await readable(when_unknown=False):
                        return
                    for event in self._remaining(record, ended, step):
                        yield event
                    return
                if any(entry.event == "completed" for entry in happened):
                    waiter.wake_if(await self._find_result(record))
                    await asyncio.sleep(0 if waiter.result() else _BLOCK_MS / 1000)
                if time.monotonic() - checked_at >= _CHECK_ACCESS_SECONDS:
                    checked_at = time.monotonic()
                    if not await readable(when_unknown=True):
                        return
                if time.monotonic() - sent_at >= _COMMENT_SECONDS:
                    sent_at = time.monotonic()
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

    async def _find_result(self, record: AcceptedRecord) -> UpgradeResult | None:
        try:
            return await self._results.find(record.upgrade_id)
        except ResultsUnavailable:
            return None

    def _remaining(self, record: AcceptedRecord, result: UpgradeResult, step: int) -> list[bytes]:
        """The events after `step` of an upgrade that has ended, made from its result."""
        events = [
            _event(stage_step(progress.stage, progress.state), "stage", progress.to_json())
            for progress in stages_of(record, result)
            if stage_step(progress.stage, progress.state) > step
        ]
        if step < COMPLETED_STEP:
            events.append(_event(COMPLETED_STEP, "completed", self._views.of(record, result).to_json()))
        return events


def stages_of(record: AcceptedRecord, result: UpgradeResult) -> list[StageProgress]:
    """The progress events of an ended upgrade's stages, as far as its result shows them."""
    skipped = {warning.code for warning in result.warnings}
    found = []
    for stage in record.stages():
        state: StageState = "skipped" if _SKIPPED_BY.get(stage) in skipped else "finished"
        latencies = [usage.latency_ms for usage in result.usage if usage.component == stage.value]
        found.append(StageProgress(stage=stage, state=state, latency_ms=sum(latencies) if latencies else None))
    return found


def _event(step: int, name: str, data: bytes) -> bytes:
    # JSON from pydantic and orjson has no line breaks, which would end the data field.
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (step, name.encode(), data)
