"""The document port on a MongoDB-wire server: the common behaviour, and what happens when the server goes away."""

import asyncio
import uuid
from pathlib import Path

import pytest

from deploy.local import servers
from shared.storage.documents import Collection, Database, Document, DuplicateKey, StorageUnavailable
from shared.storage.mongodb import MongoDatabase
from tests.adapters.document_store_behaviour import SPEC, DocumentStoreBehaviour, a_document

pytestmark = pytest.mark.cluster


class TestMongoDocuments(DocumentStoreBehaviour):
    @pytest.fixture
    async def database(self, mongodb_url: str) -> Database:
        return MongoDatabase(mongodb_url, f"test_{uuid.uuid4().hex[:12]}")


async def test_two_processes_worth_of_clients_share_a_database(mongodb_url: str) -> None:
    name = f"test_{uuid.uuid4().hex[:12]}"
    databases = [MongoDatabase(mongodb_url, name) for _ in range(2)]
    both = [database.collection(SPEC) for database in databases]
    await asyncio.gather(*(database.start() for database in databases))
    results = await asyncio.gather(
        *(both[n % 2].insert(a_document(key=f"k{n // 2}")) for n in range(100)), return_exceptions=True
    )
    assert results.count(None) == 50
    assert all(result is None or isinstance(result, DuplicateKey) for result in results)
    await asyncio.gather(*(database.stop(1.0) for database in databases))


async def test_a_reader_sees_the_whole_of_an_update_or_none_of_it(mongodb_url: str) -> None:
    name = f"test_{uuid.uuid4().hex[:12]}"
    databases = [MongoDatabase(mongodb_url, name) for _ in range(4)]
    writing, *reading = [database.collection(SPEC) for database in databases]
    await asyncio.gather(*(database.start() for database in databases))
    raised = [f"counter{n}" for n in range(40)]
    await writing.insert(a_document("a", key="k", **dict.fromkeys(raised, 0)))
    written = asyncio.Event()

    async def write() -> None:
        for _ in range(400):
            await writing.update_one({"_id": "a"}, {"$inc": dict.fromkeys(raised, 1)})
        written.set()

    async def read(things: Collection) -> list[Document | None]:
        torn: list[Document | None] = []
        while not written.is_set():
            document = await things.find_one({"_id": "a"})
            if document is None or len({document[field] for field in raised}) > 1:
                torn.append(document)
        return torn

    _, *seen = await asyncio.gather(write(), *(read(things) for things in reading))

    assert seen == [[], [], []]
    await asyncio.gather(*(database.stop(1.0) for database in databases))


async def test_a_server_that_is_gone_is_unavailable_and_comes_back_with_its_data(
    cluster_libs: Path, tmp_path: Path
) -> None:
    async with await servers.start_mongo(tmp_path / "data.mv", cluster_libs) as server:
        url = f"{server.url}/?serverSelectionTimeoutMS=500"
        database = MongoDatabase(url, "test_restart")
        things = database.collection(SPEC)
        await database.start()
        await things.insert(a_document("a", key="k"))
        await server.stop()
        for use in (
            things.get("a"),
            things.insert(a_document("b")),
            things.insert_if_absent(a_document("b")),
            things.insert_many_if_absent([a_document("b")]),
            things.find({}),
            things.count({}),
            things.update_one({"_id": "a"}, {"$inc": {"n": 1}}, upsert=True),
            things.update_many({}, {"$set": {"n": 1}}),
            things.delete_many({}),
            database.ping(),
        ):
            with pytest.raises(StorageUnavailable):
                await use
        await server.start()
        assert await things.get("a") == a_document("a", key="k")
        with pytest.raises(DuplicateKey) as duplicate:
            await things.insert(a_document(key="k"))
        assert duplicate.value.index_fields == ("tenantId", "key"), "the index is there after a restart, too"
        await things.insert(a_document())
        await things.insert(a_document())
        await database.stop(1.0)
