"""Writes that the event loop commits itself: when it does, and when it leaves them to the thread."""

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
from shared.storage.sqlite_writer import LoneWrites, Written
from tests.adapters.document_store_behaviour import SPEC, a_document
from tests.conftest import eventually


class Clock:
    """Seconds that pass only when told."""

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
def lone(file: Path, clock: Clock) -> Iterator[LoneWrites]:
    writes = LoneWrites(file, clock)
    yield writes
    writes.close()


def row(connection: sqlite3.Connection, id: str) -> str:
    connection.execute("INSERT INTO rows VALUES (?)", (id,))
    return id


def rows_in(file: Path) -> list[str]:
    with contextlib.closing(connect(file, busy_timeout_seconds=1)) as connection:
        return [id for (id,) in connection.execute("SELECT id FROM rows ORDER BY id")]


def test_what_was_written_is_there_for_all(lone: LoneWrites, file: Path) -> None:
    assert lone.write(lambda connection: row(connection, "a")) == Written("a")
    assert rows_in(file) == ["a"]


def test_a_duplicate_is_told_and_leaves_nothing(lone: LoneWrites, file: Path) -> None:
    def half(connection: sqlite3.Connection) -> None:
        row(connection, "a")
        raise DuplicateKey(("key",))

    with pytest.raises(DuplicateKey):
        lone.write(half)
    assert rows_in(file) == []
    assert lone.write(lambda connection: row(connection, "b")) == Written("b")


def test_any_other_error_leaves_nothing_either_and_nobody_locked_out(
    lone: LoneWrites, file: Path, clock: Clock
) -> None:
    def half(connection: sqlite3.Connection) -> None:
        row(connection, "a")
        raise ValueError

    with pytest.raises(ValueError):
        lone.write(half)
    with contextlib.closing(connect(file, busy_timeout_seconds=0)) as other:
        row(other, "b")
    assert rows_in(file) == ["b"]


def test_who_has_the_file_is_not_waited_for(lone: LoneWrites, file: Path, clock: Clock) -> None:
    with contextlib.closing(connect(file, busy_timeout_seconds=1)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert lone.write(lambda connection: row(connection, "a")) is None
        other.execute("COMMIT")
    assert lone.write(lambda connection: row(connection, "a")) == Written("a")


def test_it_takes_no_more_than_a_fourth_of_the_loop(lone: LoneWrites, clock: Clock) -> None:
    def a_millisecond(connection: sqlite3.Connection) -> None:
        clock.now += 0.001

    assert lone.write(a_millisecond) is not None
    clock.now += 0.0029
    assert lone.write(a_millisecond) is None
    clock.now += 0.0002
    assert lone.write(a_millisecond) is not None


def test_where_commits_are_slow_the_thread_has_them_for_a_while(lone: LoneWrites, clock: Clock) -> None:
    def slowly(connection: sqlite3.Connection) -> None:
        clock.now += 0.01

    assert lone.write(slowly) is not None
    clock.now += 0.9
    assert lone.write(slowly) is None
    clock.now += 0.2
    assert lone.write(slowly) is not None


@pytest.fixture
def database(tmp_path: Path) -> SqliteDatabase:
    return SqliteDatabase(tmp_path / "things.sqlite3")


async def test_of_many_writes_at_once_the_thread_commits_all_but_the_first(
    database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_loop: list[bool] = []
    write = LoneWrites.write

    def told(self: LoneWrites, run: Callable[[sqlite3.Connection], Any]) -> Written[Any] | None:
        assert threading.current_thread() is threading.main_thread()
        written = write(self, run)
        by_loop.append(written is not None)
        return written

    monkeypatch.setattr(LoneWrites, "write", told)
    things = database.collection(SPEC)
    await database.start()
    try:
        await asyncio.gather(*(things.insert(a_document(f"d{number}")) for number in range(100)))
        assert await things.count({}) == 100
        assert sum(by_loop) == 1
    finally:
        await database.stop(10)


async def test_the_log_of_lone_writes_is_emptied_soon(database: SqliteDatabase, tmp_path: Path) -> None:
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
