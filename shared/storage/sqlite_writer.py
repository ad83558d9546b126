"""The writing thread of a SQLite file, which groups operations into commits, and single writes done by the event
loop itself.
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


WRITE_BATCH = 256
WRITE_LOCK_TIMEOUT_SECONDS = 20.0
_EMPTY_WAL_AFTER_SECONDS = 2.0
_LONGEST_IN_WAL_SECONDS = 60.0
_BULK_SIZES = (64, 16, 4, 1)


class WriterThread(SqliteThread):
    """The one writer of this process. Other processes may write to the same file: they take turns by its lock."""

    def __init__(self, path: Path, name: str, limit: int, definition: Sequence[str]) -> None:
        super().__init__(path, name, limit)
        self._definition = definition
        self._oldest_in_wal: float | None = None

    @property
    def batch_size(self) -> int:
        return WRITE_BATCH

    def open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + WRITE_LOCK_TIMEOUT_SECONDS
        while True:
            try:
                return self._open_once()
            except sqlite3.OperationalError as error:  # processes that start together meet here
                if not is_busy(error) or time.monotonic() > deadline:
                    raise
                time.sleep(random.uniform(0.005, 0.05))  # noqa: S311

    def close(self, connection: sqlite3.Connection) -> None:
        with contextlib.suppress(sqlite3.Error):  # another process still reads: whoever closes last does it
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()

    @property
    def patience_seconds(self) -> float | None:
        """Until the write-ahead log is emptied: it still has what was erased."""
        return None if self._oldest_in_wal is None else _EMPTY_WAL_AFTER_SECONDS

    def log_was_written(self) -> None:
        """Somebody else in this process has written; the log is to be emptied in time. Called by the event loop."""
        if self._oldest_in_wal is None:
            self._oldest_in_wal = time.monotonic()
            self.wake()

    def process(self, connection: sqlite3.Connection, batch: list[Operation]) -> Iterable[Outcome]:
        if not batch or time.monotonic() - (self._oldest_in_wal or math.inf) > _LONGEST_IN_WAL_SECONDS:
            self._empty_wal(connection)
        return self._write(connection, batch) if batch else []

    def _empty_wal(self, connection: sqlite3.Connection) -> None:
        # Before it is emptied: what is written meanwhile sets it again.
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
        """In one transaction. Nobody among those who wait at the same time can tell in which order they were served."""
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


def insert_rows(connection: sqlite3.Connection, table: str, rows: Sequence[tuple[str, str]]) -> None:
    """Inserts all rows in few statements of a few fixed sizes, so that each is prepared once."""
    at = 0
    for size in _BULK_SIZES:
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
        except sqlite3.IntegrityError:  # one of them is a duplicate: find out which, one by one
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
    """BEGIN IMMEDIATE, asked for until it is granted: SQLite's own waiting backs off too far to be fair."""
    deadline = time.monotonic() + WRITE_LOCK_TIMEOUT_SECONDS
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
        with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back by itself
            connection.execute("ROLLBACK")
