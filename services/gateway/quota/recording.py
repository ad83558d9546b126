"""Writes the record of an admission in time, or withdraws the record and releases the hold.

The rebuild of a lost admission state depends on this: RECORD_WITHIN_SECONDS after an admission its record exists, or it
will never be answered with.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from shared.observability.logs import get_logger
from shared.storage.documents import StorageUnavailable

RECORD_WITHIN_SECONDS = 2.5

RecordT = TypeVar("RecordT")

log = get_logger(__name__)
_background: set[asyncio.Task[None]] = set()


@dataclass(frozen=True)
class Written:
    """The record was written."""


@dataclass(frozen=True)
class Existing(Generic[RecordT]):
    """Nothing was written: an existing record takes its place."""

    record: RecordT


async def record_in_time(
    write: Callable[[], Coroutine[Any, Any, Written | Existing[RecordT]]],
    *,
    withdraw: Callable[[], Awaitable[bool]],
    release: Callable[[], None],
    until: float,
) -> Written | Existing[RecordT]:
    """The result of `write`, which has time until `until` (monotonic seconds).

    Raises StorageUnavailable when the record was not written in time, and what `write` raises. Unless the result is
    Written, the hold is released with `release`, after `withdraw` where a record may exist. `withdraw` returns False
    for a record that has to stay, because a request was answered with it; its hold stays too.
    """
    writing = asyncio.create_task(write())
    try:
        await asyncio.wait([writing], timeout=max(0.0, until - time.monotonic()))
    except asyncio.CancelledError:
        _in_background(_undo(writing, withdraw, release))
        raise
    if not writing.done():
        _in_background(_undo(writing, withdraw, release))
        raise StorageUnavailable("the record was not written in time")
    if not _may_exist(writing):
        release()
    elif writing.exception() is not None:
        _in_background(_undo(writing, withdraw, release))
    elif time.monotonic() > until:
        # This process was suspended. Another one may have rebuilt the state without this record meanwhile.
        _in_background(_undo(writing, withdraw, release))
        raise StorageUnavailable("the record was written too late")
    return writing.result()


async def _undo(
    writing: asyncio.Task[Written | Existing[RecordT]],
    withdraw: Callable[[], Awaitable[bool]],
    release: Callable[[], None],
) -> None:
    await asyncio.wait([writing])
    try:
        if _may_exist(writing) and not await withdraw():
            return
    except StorageUnavailable:
        # A record that exists keeps its hold. One that does not is noticed when its hold is due.
        log.warning("record_not_taken_back")
        return
    release()


def _may_exist(writing: asyncio.Task[Written | Existing[RecordT]]) -> bool:
    """Whether there may be a record of this admission; after StorageUnavailable that is unknown."""
    failure = writing.exception()
    if failure is not None:
        return isinstance(failure, StorageUnavailable)
    return isinstance(writing.result(), Written)


def _in_background(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)
    _background.add(task)
    task.add_done_callback(_background.discard)
