"""Records what was admitted soon enough, or takes it back.

Whoever rebuilds a lost admission state relies on it: what was admitted with the lost state is recorded by then, or
never will be.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from shared.observability.logs import get_logger
from shared.storage.documents import StorageUnavailable

RECORD_WITHIN_SECONDS = 2.5

T = TypeVar("T")

log = get_logger(__name__)
_taking_back: set[asyncio.Task[None]] = set()


async def record_in_time(
    record: Callable[[], Awaitable[T]],
    *,
    take_back: Callable[[], Awaitable[bool]],
    release: Callable[[], None],
    until: float,
) -> T | None:
    """What `record` gives: None when it has recorded, anything else when there was nothing to record any more.

    `until` is in monotonic seconds. Raises StorageUnavailable when it came too late; then, and whenever nothing is
    recorded, the hold is given back: after `take_back` where a record may exist. `take_back` is False for a record that
    has to stay, and so does its hold.
    """
    recording = asyncio.create_task(_as_task(record))
    try:
        await asyncio.wait([recording], timeout=max(0.0, until - time.monotonic()))
    except asyncio.CancelledError:
        _in_background(_give_up(recording, take_back, release))
        raise
    if not recording.done():
        _in_background(_give_up(recording, take_back, release))
        raise StorageUnavailable("the record was not written in time")
    failure = recording.exception()
    if isinstance(failure, StorageUnavailable):
        # Whether it was written after all, nobody knows.
        _in_background(_give_up(recording, take_back, release))
    elif failure is not None or recording.result() is not None:
        release()
    elif time.monotonic() > until:
        # This process slept. By now another one may have rebuilt the state without this record.
        _in_background(_give_up(recording, take_back, release))
        raise StorageUnavailable("the record was written too late")
    return recording.result()


async def _as_task(record: Callable[[], Awaitable[T]]) -> T:
    return await record()


async def _give_up(
    recording: asyncio.Task[T], take_back: Callable[[], Awaitable[bool]], release: Callable[[], None]
) -> None:
    await asyncio.wait([recording])
    failure = recording.exception()
    try:
        may_stand = isinstance(failure, StorageUnavailable) or (failure is None and recording.result() is None)
        if may_stand and not await take_back():
            return
    except StorageUnavailable:
        # If the record stands, it keeps its hold: it is an upgrade then that its client was not told of. If it does
        # not, that is found when the hold is due.
        log.warning("record_not_taken_back")
        return
    release()


def _in_background(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)
    _taking_back.add(task)
    task.add_done_callback(_taking_back.discard)
