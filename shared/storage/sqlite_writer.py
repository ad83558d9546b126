"""Writes to a SQLite file, from a thread that commits operations in groups or directly from the event loop.

`WriterThread` handles any load: operations that wait together share a commit. `InlineWriter` saves a single write the
trip to the thread, as long as commits take little of the event loop's time.
"""

import contextlib
import math
import random
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from shared.storage.sqlite_threads import (
    Operation,
    Outcome,
    SqliteThread,
    as_unavailable,
    connect_to_write,
    is_busy,
    is_unavailable,
)

_BATCH_SIZE = 256
_LOCK_TIMEOUT_SECONDS = 20.0
_EMPTY_WAL_AFTER_SECONDS = 2.0
_MAX_WAL_AGE_SECONDS = 60.0
_ROWS_PER_INSERT = (64, 16, 4, 1)
# Inline commits take at most 1 part in 4 of the event loop's time.
_INLINE_SHARE = 4
_SLOW_COMMIT_SECONDS = 0.002
_PAUSE_AFTER_SLOW_COMMIT_SECONDS = 1.0
T = TypeVar("T")


class WriterThread(SqliteThread):
    """The writer of this process. Writers in other processes take turns with it through SQLite's file lock."""

    def __init__(self, path: Path, name: str, limit: int, definition: Sequence[str]) -> None:
        """`definition` holds the statements that create missing tables and indexes."""
        super().__init__(path, name, limit)
        self._definition = definition
        self._oldest_in_wal: float | None = None

    @property
    def batch_size(self) -> int:
        return _BATCH_SIZE

    @property
    def idle_timeout_seconds(self) -> float | None:
        """The delay after which an idle thread empties the write-ahead log, which still holds erased data."""
        return None if self._oldest_in_wal is None else _EMPTY_WAL_AFTER_SECONDS

    def note_inline_write(self) -> None:
        """Schedules the write-ahead log to be emptied after an inline write. Called by the event loop."""
        if self._oldest_in_wal is None:
            self._oldest_in_wal = time.monotonic()
            self.wake()

    def open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + _LOCK_TIMEOUT_SECONDS
        while True:
            try:
                return self._open_once()
            except sqlite3.OperationalError as error:  # processes that start together contend for the lock
                if not is_busy(error) or time.monotonic() > deadline:
                    raise
                time.sleep(random.uniform(0.005, 0.05))  # noqa: S311

    def process(self, connection: sqlite3.Connection, batch: list[Operation]) -> Iterable[Outcome]:
        if not batch or time.monotonic() - (self._oldest_in_wal or math.inf) > _MAX_WAL_AGE_SECONDS:
            self._empty_wal(connection)
        return self._write(connection, batch) if batch else []

    def close(self, connection: sqlite3.Connection) -> None:
        # Fails while another process reads; the last process to close empties the log.
        with contextlib.suppress(sqlite3.Error):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()

    def _open_once(self) -> sqlite3.Connection:
        connection = connect_to_write(self._path)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            _begin(connection)
            for statement in self._definition:
                connection.execute(statement)
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection

    def _empty_wal(self, connection: sqlite3.Connection) -> None:
        # Reset before the checkpoint, because a write during the checkpoint sets it again.
        self._oldest_in_wal = None
        emptied = False
        with contextlib.suppress(sqlite3.Error):
            [busy, *_] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            emptied = not busy
        if not emptied:
            self._oldest_in_wal = time.monotonic()

    def _write(self, connection: sqlite3.Connection, batch: list[Operation]) -> Iterable[Outcome]:
        self._oldest_in_wal = self._oldest_in_wal or time.monotonic()
        try:
            _begin(connection)
            outcomes = self._run_all(connection, batch)
            connection.execute("COMMIT")
        except Exception as error:
            _roll_back(connection)
            reason = as_unavailable(error)
            return [(operation, None, reason) for operation in batch]
        return outcomes

    def _run_all(self, connection: sqlite3.Connection, batch: list[Operation]) -> list[Outcome]:
        """Runs the batch in the open transaction, inserts last. Operations that wait together have no order."""
        outcomes: list[Outcome] = []
        inserts: dict[str, list[Operation]] = {}
        for operation in batch:
            if operation.insert is not None:
                inserts.setdefault(operation.insert.table, []).append(operation)
            else:
                outcomes.append(_run_one(connection, operation))
        for table, operations in inserts.items():
            outcomes.extend(_insert_together(connection, table, operations))
        return outcomes


@dataclass(frozen=True, slots=True)
class Committed(Generic[T]):
    """The result of a committed operation."""

    result: T


class InlineWriter:
    """Commits single operations on the event loop, over its own connection. Used and closed by one event loop."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._paused_until = 0.0
        self._connection = connect_to_write(path)
        # Checkpoints may take long, so they are left to the writer thread.
        self._connection.execute("PRAGMA wal_autocheckpoint=0")

    def write(self, run: Callable[[sqlite3.Connection], T]) -> Committed[T] | None:
        """Runs and commits the operation; returns None if the writer thread must do it instead.

        Raises what `run` raises other than SQLite's errors; nothing is written then.
        """
        started = self._clock()
        if started < self._paused_until:
            return None
        try:
            return Committed(self._commit(run))
        except sqlite3.Error:
            return None
        finally:
            self._pause_after(self._clock() - started)

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

    def _pause_after(self, seconds: float) -> None:
        slow = seconds > _SLOW_COMMIT_SECONDS
        pause = _PAUSE_AFTER_SLOW_COMMIT_SECONDS if slow else seconds * (_INLINE_SHARE - 1)
        self._paused_until = self._clock() + pause


def insert_rows(connection: sqlite3.Connection, table: str, rows: Sequence[tuple[str, str]]) -> None:
    """Inserts rows of `(id, body)` with statements of a few fixed sizes, so that SQLite can cache them."""
    at = 0
    for size in _ROWS_PER_INSERT:
        statement = f"INSERT INTO {table} (id, body) VALUES {', '.join(['(?, ?)'] * size)}"  # noqa: S608
        while len(rows) - at >= size:
            connection.execute(statement, [value for row in rows[at : at + size] for value in row])
            at += size


def _insert_together(connection: sqlite3.Connection, table: str, operations: list[Operation]) -> list[Outcome]:
    if len(operations) > 1:
        rows = [operation.insert.row for operation in operations if operation.insert is not None]
        connection.execute("SAVEPOINT together")
        try:
            insert_rows(connection, table, rows)
        except sqlite3.IntegrityError:  # at least one is a duplicate: insert one by one to find out which
            connection.execute("ROLLBACK TO together")
            connection.execute("RELEASE together")
        else:
            connection.execute("RELEASE together")
            return [(operation, operation.insert and operation.insert.result, None) for operation in operations]
    return [_run_one(connection, operation) for operation in operations]


def _run_one(connection: sqlite3.Connection, operation: Operation) -> Outcome:
    if operation.many_statements:
        connection.execute("SAVEPOINT one")
    try:
        result = operation.run(connection)
    except Exception as error:
        if isinstance(error, sqlite3.Error) and (is_unavailable(error) or not connection.in_transaction):
            raise  # the whole transaction is lost
        if operation.many_statements:
            connection.execute("ROLLBACK TO one")
            connection.execute("RELEASE one")
        return operation, None, error
    if operation.many_statements:
        connection.execute("RELEASE one")
    return operation, result, None


def _begin(connection: sqlite3.Connection) -> None:
    """Retries BEGIN IMMEDIATE until the lock is free. SQLite's own busy handler backs off too far to be fair."""
    deadline = time.monotonic() + _LOCK_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.0002, 0.002))  # noqa: S311
        else:
            return


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        with contextlib.suppress(sqlite3.Error):  # SQLite may already have rolled back
            connection.execute("ROLLBACK")
