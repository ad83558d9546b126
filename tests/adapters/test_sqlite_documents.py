"""The SQLite adapter: the common behaviour of the document port, and files shared by several processes."""

import asyncio
import contextlib
import os
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.storage.documents import Collection, Database, Index, StorageUnavailable
from shared.storage.sqlite import SqliteDatabase
from shared.storage.sqlite_queries import Table
from tests.adapters.document_store_behaviour import SPEC, DocumentStoreBehaviour, a_document
from tests.adapters.sqlite_child import SHARED_KEYS, SHARED_UPDATES
from tests.conftest import eventually

CHILD_SECONDS = 60.0


class TestSqliteDocuments(DocumentStoreBehaviour):
    @pytest.fixture
    async def database(self, tmp_path: Path) -> Database:
        return SqliteDatabase(tmp_path / "made" / "things.sqlite3")


@contextlib.asynccontextmanager
async def opened(file: Path, queue_limit: int = 4096) -> AsyncIterator[Collection]:
    database = SqliteDatabase(file, queue_limit=queue_limit)
    things = database.collection(SPEC)
    await database.start()
    try:
        yield things
    finally:
        await database.stop(10.0)


async def child(mode: str, file: Path, name: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.adapters.sqlite_child", mode, str(file), name),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parent.parent.parent,
        limit=2**20,
    )


async def output_of(process: asyncio.subprocess.Process) -> list[str]:
    try:
        out, err = await asyncio.wait_for(process.communicate(), CHILD_SECONDS)
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode == 0, err.decode()
    return out.decode().split("\n")[:-1]


async def test_several_processes_share_one_file(tmp_path: Path) -> None:
    file = tmp_path / "shared.sqlite3"
    children = [await child("share", file, f"p{n}") for n in range(3)]
    outputs = await asyncio.gather(*(output_of(process) for process in children))
    assert sum(int(won) for (won,) in outputs) == SHARED_KEYS, "one process owns each contested key"
    async with opened(file) as things:
        assert await things.get("total") == {"_id": "total", "n": 3 * SHARED_UPDATES}
        assert await things.count({"key": {"$exists": True}}) == SHARED_KEYS


async def test_a_killed_process_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    file = tmp_path / "killed.sqlite3"
    acknowledged: list[str] = []
    for life in ("first", "second"):
        process = await child("endless", file, life)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(CHILD_SECONDS):
                seen = [await process.stdout.readline() for _ in range(600)]
        finally:
            process.kill()
        rest, err = await process.communicate()
        assert process.returncode == -9, err.decode()
        lines = b"".join(seen) + rest
        acknowledged += lines[: lines.rindex(b"\n")].decode().split("\n")
    assert len(acknowledged) >= 1200
    async with opened(file) as things:
        assert {d["_id"] for d in await things.get_many(acknowledged)} == set(acknowledged)
        total = await things.get("total")
        assert total is not None
        assert total["n"] >= len(acknowledged)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_a_full_disk_is_unavailable_until_there_is_room(tmp_path: Path) -> None:
    process = await child("full", tmp_path / "full.sqlite3", "f")
    assert await output_of(process) == ["unavailable", "True", "True"]


async def test_a_file_that_is_not_a_database_fails_the_start(tmp_path: Path) -> None:
    file = tmp_path / "text.sqlite3"
    file.write_text("not a database, but long enough that nobody could take it for an empty one " * 20)
    with pytest.raises(StorageUnavailable, match=r"text\.sqlite3"):
        async with opened(file):
            pass


async def test_a_folder_that_cannot_be_created_fails_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageUnavailable, match=r"x\.sqlite3"):
        async with opened(tmp_path / "file" / "x.sqlite3"):
            pass


async def test_writes_wait_for_a_lock_of_another_process(tmp_path: Path) -> None:
    file = tmp_path / "locked.sqlite3"
    async with opened(file) as things:
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        writes = [asyncio.create_task(things.insert(a_document())) for _ in range(50)]
        assert await things.count({}) == 0, "reads do not wait"
        assert not any(write.done() for write in writes)
        other.execute("ROLLBACK")
        other.close()
        await asyncio.gather(*writes)
        assert await things.count({}) == 50


async def test_stop_finishes_queued_writes(tmp_path: Path) -> None:
    file = tmp_path / "drained.sqlite3"
    database = SqliteDatabase(file, queue_limit=1000)
    things = database.collection(SPEC)
    await database.start()
    writes = [asyncio.create_task(things.insert(a_document())) for _ in range(800)]
    await asyncio.sleep(0)
    await database.stop(10.0)
    await asyncio.gather(*writes)
    assert not os.path.exists(f"{file}-wal"), "the write-ahead log is merged into the file"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM things").fetchone() == (800,)


async def test_stop_fails_writes_that_exceed_the_grace_period(tmp_path: Path) -> None:
    file = tmp_path / "cut.sqlite3"
    database = SqliteDatabase(file)
    things = database.collection(SPEC)
    await database.start()
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    write = asyncio.create_task(things.insert(a_document()))
    await asyncio.sleep(0)
    await database.stop(0.1)
    with pytest.raises(StorageUnavailable):
        await write
    other.close()


async def test_writers_wait_for_room_in_the_queue(tmp_path: Path) -> None:
    file = tmp_path / "bounded.sqlite3"
    async with opened(file, queue_limit=8) as things:
        answers = await asyncio.gather(*(things.insert(a_document()) for _ in range(200)))
        assert len(answers) == 200
        assert await things.count({}) == 200


async def test_a_cancelled_write_does_not_affect_others(tmp_path: Path) -> None:
    async with opened(tmp_path / "cancelled.sqlite3", queue_limit=8) as things:
        writes = [asyncio.create_task(things.insert(a_document())) for _ in range(60)]
        await asyncio.sleep(0)
        for write in writes[::2]:
            write.cancel()
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert all(result is None for result in results[1::2])
        await asyncio.gather(*(things.insert(a_document()) for _ in range(60)))
        assert await things.count({}) >= 90


async def test_a_busy_event_loop_does_not_starve_the_store(tmp_path: Path) -> None:
    async with opened(tmp_path / "busy.sqlite3") as things:
        await things.insert(a_document("a"))
        deadline = time.monotonic() + 1.0
        reads = 0

        async def burn() -> None:
            while time.monotonic() < deadline:
                until = time.perf_counter() + 0.0005
                while time.perf_counter() < until:
                    pass
                await asyncio.sleep(0)

        async def read() -> None:
            nonlocal reads
            while time.monotonic() < deadline:
                await things.get("a")
                reads += 1

        await asyncio.gather(burn(), *(read() for _ in range(8)))
        assert reads > 100


async def test_searches_and_uniqueness_use_their_indexes(tmp_path: Path) -> None:
    file = tmp_path / "plan.sqlite3"
    async with opened(file) as things:
        await things.insert(a_document("a", key="k", createdAt="2026-01-01", counted=False, batch="b"))
    table = Table(SPEC)
    connection = sqlite3.connect(file)
    for filter, index in (
        ({"tenantId": "t1", "key": "k"}, "things_ux_tenantId_key_if_key"),
        ({"tenantId": "t1", "createdAt": {"$gte": "2026"}}, "things_ix_tenantId_createdAt"),
        ({"counted": False, "batch": {"$in": ["b", "c"]}}, "things_ix_counted_batch"),
        ({"_id": {"$in": ["a", "b"]}}, "sqlite_autoindex_things_1"),
        ({"_id": {"$in": ["a", "b"]}, "key": {"$exists": True}}, "sqlite_autoindex_things_1"),
        ({"owed": {"$exists": True}, "_id": {"$gt": "a"}}, "things_ix_owed_if_owed"),
        ({"owed": {"$lt": "2026"}, "_id": {"$gt": "a"}}, "things_ix_owed_if_owed"),
    ):
        clause, parameters = table.where(filter)
        where = clause + table.order_by([("_id", 1)], filter)
        plan = connection.execute("EXPLAIN QUERY PLAN " + table.select("body", where), parameters).fetchall()
        assert index in str(plan), (filter, plan)
    newest = table.where({"tenantId": "t1"})[0] + table.order_by([("createdAt", -1)], {})
    plan = connection.execute("EXPLAIN QUERY PLAN " + table.select("body", newest), ["t1"]).fetchall()
    assert "TEMP B-TREE" not in str(plan), "the index provides the order"
    connection.close()


async def test_a_list_in_an_indexed_field_is_rejected(tmp_path: Path) -> None:
    async with opened(tmp_path / "lists.sqlite3") as things:
        with pytest.raises(ValueError, match="createdAt"):
            await things.insert(a_document("a", createdAt=["2026"]))
        await things.insert(a_document("a", createdAt="2026"))
        with pytest.raises(ValueError, match="createdAt"):
            await things.update_one({"_id": "a"}, {"$set": {"createdAt": {"year": 2026}}})
        assert await things.get("a") == a_document("a", createdAt="2026")


def test_an_index_is_named_by_its_definition() -> None:
    assert Index(("tenantId", "key"), unique=True, only_when_present="key").name == "ux_tenantId_key_if_key"
    assert Index(("a.b", "c")).name == "ix_a.b_c"


async def test_erased_data_soon_disappears_from_all_files(tmp_path: Path) -> None:
    async with opened(tmp_path / "things.sqlite3") as things:
        await things.insert(a_document("a", text="about my salary"))
        await things.insert(a_document("b", text="about the weather"))
        await things.update_one({"_id": "a"}, {"$unset": {"text": ""}})

        async def is_gone() -> bool:
            files = list(tmp_path.iterdir())
            return len(files) == 3 and not any(b"about my salary" in file.read_bytes() for file in files)

        await eventually(is_gone, 10)
        assert (await things.get("b") or {})["text"] == "about the weather"
