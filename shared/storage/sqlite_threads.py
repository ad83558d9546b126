"""The threads that talk to a SQLite file: each has its own connection and takes operations from a bounded queue."""

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

READ_BATCH = 16
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
    """A plain insert of one row, which the writer may put into one statement with others of its table."""

    table: str
    row: tuple[str, str]
    result: Any


@dataclass(slots=True, eq=False)
class Operation:
    """What a thread is asked to do. `future` gets what `run` returns or raises.

    `many_statements`: `run` may fail after it has written something, and that must be undone. `insert`: what `run`
    does, told so that it can be done together with others.
    """

    run: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any]
    many_statements: bool = False
    insert: Insert | None = None


class _Signal(Enum):
    """What else a thread may find in its queue: to end, and to look at its patience again."""

    STOP = 1
    WAKE = 2


Outcome = tuple[Operation, Any, BaseException | None]


class SqliteThread(ABC):
    """A thread with a connection. `submit` from the event loop; the queue holds at most `limit` operations."""

    def __init__(self, path: Path, name: str, limit: int) -> None:
        self._path = path
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._queue: queue.SimpleQueue[Operation | _Signal] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(limit)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: asyncio.Future[None] | None = None
        self._accepting = False
        self._waiting: set[Operation] = set()
        self._done_at = float("-inf")

    async def start(self) -> None:
        """Opens the connection; raises `StorageUnavailable`."""
        # An event loop that is never idle lets go of the interpreter's lock too briefly for another thread to notice.
        # At Python's own 5 ms, measured, such a loop starves these threads for seconds.
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
        """What `run` returns, on the thread. Waits for room in the queue; `StorageUnavailable` when closed."""
        self._check_open()
        await self._room.acquire()
        try:
            self._check_open()  # it may have been closed while this waited
        except StorageUnavailable:
            self._room.release()
            raise
        operation = Operation(run, asyncio.get_running_loop().create_future(), many_statements, insert)
        self._waiting.add(operation)
        self._queue.put(operation)
        return await operation.future

    async def stop(self, grace_seconds: float) -> None:
        """Takes no more, does what is queued within `grace_seconds`, closes. What is left fails as unavailable."""
        if self._loop is None:
            return
        self._accepting = False
        self._queue.put(_Signal.STOP)
        await asyncio.to_thread(self._thread.join, max(grace_seconds, 0.01))
        await asyncio.sleep(0)  # lets the last results be delivered
        for operation in list(self._waiting):
            self._deliver([(operation, None, StorageUnavailable("the database was closed first"))])

    def wake(self) -> None:
        """To be called when `patience_seconds` has become less."""
        self._queue.put(_Signal.WAKE)

    def _check_open(self) -> None:
        if not self._accepting:
            raise StorageUnavailable("the database is closed")

    @property
    def is_quiet(self) -> bool:
        """Whether it runs, has nothing to do, and had nothing for some time."""
        return self._accepting and not self._waiting and time.monotonic() - self._done_at > _QUIET_SECONDS

    @property
    def alive(self) -> bool:
        """Whether the thread still works."""
        return self._thread.is_alive()

    @abstractmethod
    def process(self, connection: sqlite3.Connection, batch: list[Operation]) -> Iterable[Outcome]:
        """Does the operations; every one has an outcome. Must not raise. No operations: none came in time."""

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """How many operations are taken at once."""

    @property
    def patience_seconds(self) -> float | None:
        """For how long it waits for operations before it is called without any; None: for ever."""
        return None

    @abstractmethod
    def open(self) -> sqlite3.Connection:
        """The thread's connection."""

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
            taken = self._queue.get(timeout=self.patience_seconds)
            while taken is _Signal.WAKE:
                taken = self._queue.get(timeout=self.patience_seconds)
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
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    def _deliver(self, outcomes: Iterable[Outcome]) -> None:
        self._done_at = time.monotonic()
        for operation, result, error in outcomes:
            if operation in self._waiting:
                self._waiting.remove(operation)
                self._room.release()
                _settle(operation.future, result, error)


class ReaderThread(SqliteThread):
    """Reads, each in a snapshot of its own that has everything acknowledged before."""

    @property
    def batch_size(self) -> int:
        return READ_BATCH

    def open(self) -> sqlite3.Connection:
        return connect(self._path, busy_timeout_seconds=_READ_LOCK_TIMEOUT_SECONDS)

    def process(self, connection: sqlite3.Connection, batch: list[Operation]) -> Iterable[Outcome]:
        for operation in batch:
            try:
                yield operation, operation.run(connection), None
            except Exception as error:
                yield operation, None, as_unavailable(error)


def connect(path: Path, *, busy_timeout_seconds: float) -> sqlite3.Connection:
    """A connection for the thread that calls, with no transactions of the driver's own."""
    connection = sqlite3.connect(path, timeout=busy_timeout_seconds, isolation_level=None, cached_statements=256)
    connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
    return connection


def connect_to_write(path: Path) -> sqlite3.Connection:
    """As `connect`, without waiting for a lock. What it commits survives a loss of power, what it erases is gone."""
    connection = connect(path, busy_timeout_seconds=0.0)
    connection.execute("PRAGMA synchronous=FULL")
    # What is erased is overwritten, not only unlinked.
    connection.execute("PRAGMA secure_delete=ON")
    return connection


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another connection holds the lock."""
    return _primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_unavailable(error: sqlite3.Error) -> bool:
    """Whether the file, and not the request, is the trouble."""
    return _primary_code(error) in _UNAVAILABLE


def as_unavailable(error: Exception) -> Exception:
    """`StorageUnavailable` where the file is the trouble, else the error itself."""
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
