"""Records what was admitted soon enough, or takes it back.

Whoever rebuilds a lost admission state relies on it: what was admitted with the lost state is recorded by then, or
never will be.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from shared.observability.logs import get_logger
from shared.storage.documents import StorageUnavailable

RECORD_WITHIN_SECONDS = 2.5

T = TypeVar("T")

log = get_logger(__name__)
_taking_back: set[asyncio.Task[None]] = set()


async def record_in_time(
    record: Callable[[], Awaitable[T]],
    *,
    take_back: Callable[[], Awaitable[None]],
    release: Callable[[], None],
    until: float,
) -> T | None:
    """What `record` gives: None when it has recorded, anything else when there was nothing to record any more.

    `until` is in monotonic seconds. Raises StorageUnavailable when it came too late; then, and whenever nothing is
    recorded, the hold is given back: after `take_back` where a record may exist.
    """
    recording = asyncio.ensure_future(_as_task(record))
    try:
        await asyncio.wait([recording], timeout=max(0.0, until - time.monotonic()))
    except asyncio.CancelledError:
        _in_background(_give_up(recording, take_back, release))
        raise
    if not recording.done():
        _in_background(_give_up(recording, take_back, release))
        raise StorageUnavailable("the record was not written in time")
    if recording.exception() is not None:
        release()
    elif recording.result() is not None:
        release()
    elif time.monotonic() > until:
        # This process slept. By now another one may have rebuilt the state without this record.
        _in_background(_give_up(recording, take_back, release))
        raise StorageUnavailable("the record was written too late")
    return recording.result()


async def _as_task(record: Callable[[], Awaitable[T]]) -> T:
    return await record()


async def _give_up(
    recording: "asyncio.Future[object]", take_back: Callable[[], Awaitable[None]], release: Callable[[], None]
) -> None:
    await asyncio.wait([recording])
    try:
        if recording.exception() is None and recording.result() is None:
            await take_back()
    except StorageUnavailable:
        # The record stands and keeps its hold; it is an upgrade that its client was not told of.
        log.warning("record_not_taken_back")
        return
    release()


def _in_background(work: "Awaitable[None]") -> None:
    task = asyncio.ensure_future(work)
    _taking_back.add(task)
    task.add_done_callback(_taking_back.discard)
