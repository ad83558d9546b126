"""Threads that run operations on a SQLite file, each with its own connection and a bounded queue."""

import asyncio
import queue
import sqlite3
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from shared.storage.documents import StorageUnavailable

_READ_BATCH = 16
_QUIET_SECONDS = 0.005
_SWITCH_INTERVAL_SECONDS = 0.0001
_READ_LOCK_TIMEOUT_SECONDS = 10.0
_CACHE_KIB = 16 * 1024
_UNAVAILABLE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_PROTOCOL,
}


@dataclass(slots=True)
class Insert:
    """An insert of one row, which the writer may combine with others into the same table. `result` is its outcome."""

    table: str
    row: tuple[str, str]
    result: Any


@dataclass(slots=True, eq=False)
class Operation:
    """An operation for a thread. `future` receives what `run` returns or raises.

    `many_statements`: `run` may fail after a write, which must then be rolled back. `insert` describes `run` if it is
    a plain insert, so that the writer can combine it with others.
    """

    run: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any]
    many_statements: bool = False
    insert: Insert | None = None


class _Signal(Enum):
    """Control messages in a thread's queue: stop, and re-evaluate `idle_timeout_seconds`."""

    STOP = 1
    WAKE = 2


Outcome = tuple[Operation, Any, BaseException | None]


class SqliteThread(ABC):
    """A thread with a connection. The event loop submits operations; at most `limit` of them are queued."""

    def __init__(self, path: Path, name: str, limit: int) -> None:
        self._path = path
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._queue: queue.SimpleQueue[Operation | _Signal] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(limit)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: asyncio.Future[None] | None = None
        self._accepting = False
        self._waiting: set[Operation] = set()
        self._last_done_at = float("-inf")

    async def start(self) -> None:
        """Starts the thread and waits until its connection is open. Raises `StorageUnavailable`."""
        # An event loop that is never idle releases the GIL too briefly for another thread to take it. With Python's
        # default of 5 ms, such a loop was measured to starve these threads for seconds.
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_INTERVAL_SECONDS))
        self._loop = asyncio.get_running_loop()
        self._opened = self._loop.create_future()
        self._thread.start()
        await self._opened
        self._accepting = True

    async def submit(
        self,
        run: Callable[[sqlite3.Connection], Any],
        *,
        many_statements: bool = False,
        insert: Insert | None = None,
    ) -> Any:
        """Runs `run` on the thread and returns its result. Waits for room in the queue.

        Raises `StorageUnavailable` when closed.
        """
        self._check_open()
        await self._room.acquire()
        try:
            self._check_open()  # it may have closed during the wait
        except StorageUnavailable:
            self._room.release()
            raise
        operation = Operation(run, asyncio.get_running_loop().create_future(), many_statements, insert)
        self._waiting.add(operation)
        self._queue.put(operation)
        return await operation.future

    async def stop(self, grace_seconds: float) -> None:
        """Rejects new operations, finishes queued ones within `grace_seconds`, and closes.

        Unfinished operations fail with `StorageUnavailable`.
        """
        if self._loop is None:
            return
        self._accepting = False
        self._queue.put(_Signal.STOP)
        await asyncio.to_thread(self._thread.join, max(grace_seconds, 0.01))
        await asyncio.sleep(0)  # deliver the last results
        for operation in list(self._waiting):
            self._deliver([(operation, None, StorageUnavailable("the database closed before the operation ran"))])

    def wake(self) -> None:
        """Makes an idle thread re-evaluate `idle_timeout_seconds`."""
        self._queue.put(_Signal.WAKE)

    def _check_open(self) -> None:
        if not self._accepting:
            raise StorageUnavailable("the database is closed")

    @property
    def is_quiet(self) -> bool:
        """Whether the thread is open, has no operations, and has had none for some milliseconds."""
        return self._accepting and not self._waiting and time.monotonic() - self._last_done_at > _QUIET_SECONDS

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @abstractmethod
    def process(self, connection: sqlite3.Connection, batch: list[Operation]) -> Iterable[Outcome]:
        """Runs the operations and returns an outcome for each. Must not raise.

        An empty batch means that none arrived within `idle_timeout_seconds`.
        """

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """The largest number of operations in one batch."""

    @property
    def idle_timeout_seconds(self) -> float | None:
        """How long to wait for operations before `process` gets an empty batch; None waits forever."""
        return None

    @abstractmethod
    def open(self) -> sqlite3.Connection:
        """Opens the thread's connection."""

    def close(self, connection: sqlite3.Connection) -> None:
        """Closes the thread's connection."""
        connection.close()

    def _work(self) -> None:
        try:
            connection = self.open()
        except Exception as error:
            unavailable = StorageUnavailable(f"{self._path.name} cannot be opened: {error}")
            self._in_loop(_settle, self._opened, None, unavailable)
            return
        self._in_loop(_settle, self._opened, None, None)
        closing = False
        while not closing:
            batch, closing = self._next_batch()
            if batch or not closing:
                outcomes = list(self.process(connection, batch))
                self._in_loop(self._deliver, outcomes)
        self.close(connection)

    def _next_batch(self) -> tuple[list[Operation], bool]:
        try:
            taken = self._queue.get(timeout=self.idle_timeout_seconds)
            while taken is _Signal.WAKE:
                taken = self._queue.get(timeout=self.idle_timeout_seconds)
        except queue.Empty:
            return [], False
        batch: list[Operation] = []
        while taken is not _Signal.STOP:
            if isinstance(taken, Operation):
                batch.append(taken)
            if len(batch) == self.batch_size:
                return batch, False
            try:
                taken = self._queue.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _in_loop(self, call: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None  # noqa: S101 - set before the thread starts
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # the loop is closed, so no caller is waiting
            return

    def _deliver(self, outcomes: Iterable[Outcome]) -> None:
        self._last_done_at = time.monotonic()
        for operation, result, error in outcomes:
            if operation in self._waiting:
                self._waiting.remove(operation)
                self._room.release()
                _settle(operation.future, result, error)


class ReaderThread(SqliteThread):
    """Runs reads. Each sees a snapshot that includes every write acknowledged before it."""

    @property
    def batch_size(self) -> int:
        return _READ_BATCH

    def open(self) -> sqlite3.Connection:
        return connect(self._path, busy_timeout_seconds=_READ_LOCK_TIMEOUT_SECONDS)

    def process(self, connection: sqlite3.Connection, batch: list[Operation]) -> Iterable[Outcome]:
        for operation in batch:
            try:
                yield operation, operation.run(connection), None
            except Exception as error:
                yield operation, None, as_unavailable(error)


def connect(path: Path, *, busy_timeout_seconds: float) -> sqlite3.Connection:
    """Opens a connection for the calling thread, without the driver's implicit transactions."""
    connection = sqlite3.connect(path, timeout=busy_timeout_seconds, isolation_level=None, cached_statements=256)
    connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
    return connection


def connect_to_write(path: Path) -> sqlite3.Connection:
    """Opens a connection for durable writes, which does not wait for locks. Commits survive a loss of power."""
    connection = connect(path, busy_timeout_seconds=0.0)
    connection.execute("PRAGMA synchronous=FULL")
    # Overwrite deleted content with zeros.
    connection.execute("PRAGMA secure_delete=ON")
    return connection


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another connection holds the lock."""
    return _primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_unavailable(error: sqlite3.Error) -> bool:
    """Whether the error comes from the file or its environment rather than from the request."""
    return _primary_code(error) in _UNAVAILABLE


def as_unavailable(error: Exception) -> Exception:
    """Returns `StorageUnavailable` for errors of the file, other errors unchanged."""
    transient = isinstance(error, sqlite3.Error) and is_unavailable(error)
    return StorageUnavailable(str(error)) if transient else error


def _primary_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _settle(future: asyncio.Future[Any] | None, result: Any, error: BaseException | None) -> None:
    if future is not None and not future.done():
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
