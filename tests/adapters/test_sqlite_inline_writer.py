"""Inline writes: when the event loop commits a write itself, and when it leaves the write to the thread."""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.storage.documents import DuplicateKey
from shared.storage.sqlite import SqliteDatabase
from shared.storage.sqlite_threads import connect
from shared.storage.sqlite_writer import Committed, InlineWriter
from tests.adapters.document_store_behaviour import SPEC, a_document
from tests.conftest import eventually


class Clock:
    """A clock that tests advance by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    with contextlib.closing(connect(tmp_path / "file.sqlite3", busy_timeout_seconds=1)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE rows (id TEXT PRIMARY KEY)")
    return tmp_path / "file.sqlite3"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def writer(file: Path, clock: Clock) -> Iterator[InlineWriter]:
    inline_writer = InlineWriter(file, clock)
    yield inline_writer
    inline_writer.close()


def row(connection: sqlite3.Connection, id: str) -> str:
    connection.execute("INSERT INTO rows VALUES (?)", (id,))
    return id


def rows_in(file: Path) -> list[str]:
    with contextlib.closing(connect(file, busy_timeout_seconds=1)) as connection:
        return [id for (id,) in connection.execute("SELECT id FROM rows ORDER BY id")]


def test_a_committed_write_is_visible_to_other_connections(writer: InlineWriter, file: Path) -> None:
    assert writer.write(lambda connection: row(connection, "a")) == Committed("a")
    assert rows_in(file) == ["a"]


def test_a_duplicate_is_raised_and_nothing_is_written(writer: InlineWriter, file: Path) -> None:
    def half(connection: sqlite3.Connection) -> None:
        row(connection, "a")
        raise DuplicateKey(("key",))

    with pytest.raises(DuplicateKey):
        writer.write(half)
    assert rows_in(file) == []
    assert writer.write(lambda connection: row(connection, "b")) == Committed("b")


def test_any_other_error_writes_nothing_and_releases_the_lock(writer: InlineWriter, file: Path, clock: Clock) -> None:
    def half(connection: sqlite3.Connection) -> None:
        row(connection, "a")
        raise ValueError

    with pytest.raises(ValueError):
        writer.write(half)
    with contextlib.closing(connect(file, busy_timeout_seconds=0)) as other:
        row(other, "b")
    assert rows_in(file) == ["b"]


def test_a_locked_file_leaves_the_write_to_the_thread(writer: InlineWriter, file: Path, clock: Clock) -> None:
    with contextlib.closing(connect(file, busy_timeout_seconds=1)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert writer.write(lambda connection: row(connection, "a")) is None
        other.execute("COMMIT")
    assert writer.write(lambda connection: row(connection, "a")) == Committed("a")


def test_inline_writes_take_at_most_a_quarter_of_the_loop(writer: InlineWriter, clock: Clock) -> None:
    def a_millisecond(connection: sqlite3.Connection) -> None:
        clock.now += 0.001

    assert writer.write(a_millisecond) is not None
    clock.now += 0.0029
    assert writer.write(a_millisecond) is None
    clock.now += 0.0002
    assert writer.write(a_millisecond) is not None


def test_a_slow_commit_pauses_inline_writes(writer: InlineWriter, clock: Clock) -> None:
    def slowly(connection: sqlite3.Connection) -> None:
        clock.now += 0.01

    assert writer.write(slowly) is not None
    clock.now += 0.9
    assert writer.write(slowly) is None
    clock.now += 0.2
    assert writer.write(slowly) is not None


@pytest.fixture
def database(tmp_path: Path) -> SqliteDatabase:
    return SqliteDatabase(tmp_path / "things.sqlite3")


async def test_the_thread_commits_all_but_the_first_of_many_concurrent_writes(
    database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_loop: list[bool] = []
    write = InlineWriter.write

    def counted_write(self: InlineWriter, run: Callable[[sqlite3.Connection], Any]) -> Committed[Any] | None:
        assert threading.current_thread() is threading.main_thread()
        written = write(self, run)
        by_loop.append(written is not None)
        return written

    monkeypatch.setattr(InlineWriter, "write", counted_write)
    things = database.collection(SPEC)
    await database.start()
    try:
        await asyncio.gather(*(things.insert(a_document(f"d{number}")) for number in range(100)))
        assert await things.count({}) == 100
        assert sum(by_loop) == 1
    finally:
        await database.stop(10)


async def test_the_log_is_soon_emptied_after_inline_writes(database: SqliteDatabase, tmp_path: Path) -> None:
    things = database.collection(SPEC)
    await database.start()
    log = tmp_path / "things.sqlite3-wal"

    async def emptied() -> bool:
        return log.stat().st_size == 0

    try:
        await things.insert(a_document("a"))
        assert log.stat().st_size > 0
        await eventually(emptied, 10)
        assert await things.get("a") is not None
    finally:
        await database.stop(10)
