"""Writes that nobody could share a commit with, done by the event loop itself.

To wake the writer's thread and to be woken by it costs an upgrade that is alone more than its commit does. So a write
that finds the thread quiet is committed at once, as long as that stays short and rare: where commits are
slow, or many, the thread does them, and the loop goes on meanwhile.
"""

import contextlib
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from shared.storage.sqlite_threads import connect_to_write

# Of its time, the loop gives one part in so many to commits at most.
_SHARE_OF_LOOP = 4
_LONGEST_SECONDS = 0.002
_AFTER_A_LONG_ONE_SECONDS = 1.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Written(Generic[T]):
    """What the committed operation returned."""

    result: T


class LoneWrites:
    """A connection for such writes. To be used by one event loop, and closed by it."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._not_before = 0.0
        self._connection = connect_to_write(path)
        # The thread moves the log into the file: that takes as long as it takes.
        self._connection.execute("PRAGMA wal_autocheckpoint=0")

    def write(self, run: Callable[[sqlite3.Connection], T]) -> Written[T] | None:
        """Commits the operation; None when it is for the thread. Raises what `run` raises; nothing is written then."""
        began = self._clock()
        if began < self._not_before:
            return None
        try:
            return Written(self._commit(run))
        except sqlite3.Error:
            return None
        finally:
            self._rest(self._clock() - began)

    def close(self) -> None:
        self._connection.close()

    def _commit(self, run: Callable[[sqlite3.Connection], T]) -> T:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            result = run(self._connection)
            self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._connection.rollback()
            raise
        return result

    def _rest(self, seconds: float) -> None:
        long = seconds > _LONGEST_SECONDS
        pause = _AFTER_A_LONG_ONE_SECONDS if long else seconds * (_SHARE_OF_LOOP - 1)
        self._not_before = self._clock() + pause
