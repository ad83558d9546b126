"""Measures the usage service's crash-safe counting of events, compared with a plain bulk write."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import UpdateOne

from benchmarks.backends import EMBEDDED, kafka_libs, open_sqlite
from benchmarks.pairs import Measured, Row, medians, paired, ratios
from benchmarks.side_process import side
from benchmarks.usage_events import batches
from deploy.local.servers import start_mongo
from services.usage.counting.count_batch import CountBatch
from services.usage.counting.increments import increments_of
from services.usage.counting.ledger_event import LedgerEvent
from services.usage.counting.ledger_store import LedgerStore
from shared.contracts.contract import new_id
from shared.storage.documents import Database
from shared.storage.mongodb import MongoDatabase
from shared.storage.sqlite import SqliteDatabase

BATCH = 2000
BATCHES = 10
AGGREGATION = Row(
    "usage-aggregation",
    "events/s",
    "A is the usage service's counting (ledger, batch registry, counters and rollups, in steps that survive a kill; a "
    "batch is stored while the previous one is counted); "
    "B is written by hand for the store: look up which ids are new, insert those events in bulk, add the same "
    "increments in bulk, and keep no record of what was added, so that a crash corrupts the counters. "
    f"Batches of {BATCH} events of 1,000 users, a tenth of them stored before; the events are decoded beforehand. "
    "On SQLite (-embedded; B is one transaction a batch, `synchronous=FULL` as in A) and on the MongoDB-wire server of "
    "the cluster (-kafka; same write concern).",
    goal=0.7,
)
ROWS = (AGGREGATION,)


async def measure(kind: str, chosen: Sequence[Row]) -> list[Measured]:
    """Measures on the document store that goes with this kind of broker. No broker runs."""
    results = []
    async with _store(kind) as options:
        for row in chosen:
            async with (
                side("benchmarks.usage_aggregation:Counting", **options) as ours,
                side("benchmarks.usage_aggregation:BulkWrite", **options) as raw,
            ):
                pairs = await paired(lambda ours=ours: ours.call("run"), lambda raw=raw: raw.call("run"))  # type: ignore[misc]
            absolute = medians(pairs, "{per_second:,.0f}/s ({per_cpu_second:,.0f}/CPU s)", "; ")
            results.append(Measured(row.on(kind), row, ratios(pairs, "per_second"), absolute))
    return results


@asynccontextmanager
async def _store(kind: str) -> AsyncIterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="bench-usage-") as folder:
        if kind == EMBEDDED:
            yield {"folder": folder, "url": ""}
            return
        async with await start_mongo(Path(folder) / "data.mv", await kafka_libs()) as mongo:
            yield {"folder": folder, "url": mongo.url}


class _Side:
    """Counts ten batches per run. The warm-up run creates the counters and rollups."""

    def __init__(self) -> None:
        self._runs = 0

    async def run(self) -> dict[str, float]:
        self._runs += 1
        work = batches(BATCHES, BATCH, seed=7, run=self._runs)
        wall, cpu = time.perf_counter(), time.process_time()
        counted = 0
        for events in work:
            counted += await self.count(events)
        await self.finish()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        assert counted == BATCH + (BATCHES - 1) * (BATCH - BATCH // 10)
        return {"per_second": BATCH * BATCHES / wall, "per_cpu_second": BATCH * BATCHES / cpu}

    async def count(self, events: Sequence[LedgerEvent]) -> int:
        raise NotImplementedError

    async def finish(self) -> None:
        """Waits until everything is counted."""


class Counting(_Side):
    """Side A: the usage service's counting."""

    def __init__(self, folder: str, url: str) -> None:
        super().__init__()
        self._database: Database = MongoDatabase(url, "ours") if url else SqliteDatabase(Path(folder) / "ours.sqlite3")
        ledger = LedgerStore(self._database)
        self._counting = CountBatch(ledger, ledger.registry, owner=new_id(), lease_seconds=5.0)

    async def start(self) -> None:
        await self._database.start()

    async def close(self) -> None:
        await self._database.stop(5)

    async def count(self, events: Sequence[LedgerEvent]) -> int:
        batch = await self._counting.count_in_background(events)
        self._last = batch.done
        return batch.new

    async def finish(self) -> None:
        await self._last


class BulkWrite(_Side):
    """Side B: a bulk write."""

    def __init__(self, folder: str, url: str) -> None:
        super().__init__()
        self._store: _RawMongo | _RawSqlite = _RawMongo(url) if url else _RawSqlite(Path(folder) / "raw.sqlite3")

    async def start(self) -> None:
        await self._store.start()

    async def close(self) -> None: ...

    async def count(self, events: Sequence[LedgerEvent]) -> int:
        return await self._store.count(events)


class _RawSqlite:
    """Stores events as JSON by id, and a row for each amount of each counter and rollup."""

    def __init__(self, path: Path) -> None:
        self._rows = open_sqlite(
            path,
            "CREATE TABLE events (id TEXT PRIMARY KEY, body TEXT NOT NULL)",
            "CREATE TABLE amounts (key TEXT, field TEXT, amount INTEGER, PRIMARY KEY (key, field)) WITHOUT ROWID",
        )

    async def start(self) -> None: ...

    async def count(self, events: Sequence[LedgerEvent]) -> int:
        return await asyncio.to_thread(self._count, events)

    def _count(self, events: Sequence[LedgerEvent]) -> int:
        self._rows.execute("BEGIN IMMEDIATE")
        ids = orjson.dumps([event.event_id for event in events]).decode()
        known = {
            id
            for (id,) in self._rows.execute(
                "SELECT id FROM events WHERE id IN (SELECT value FROM json_each(?))", (ids,)
            )
        }
        new = [event for event in events if event.event_id not in known]
        self._rows.executemany(
            "INSERT INTO events VALUES (?, ?)",
            [(event.event_id, orjson.dumps(event.to_document()).decode()) for event in new],
        )
        self._rows.executemany(
            "INSERT INTO amounts VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET amount = amount + excluded.amount",
            [(key, name, amount) for key, amounts in _amounts_of(new) for name, amount in amounts.items()],
        )
        self._rows.execute("COMMIT")
        return len(new)


class _RawMongo:
    """Stores events by id, and a document for each counter and rollup."""

    def __init__(self, url: str) -> None:
        self._database: Any = AsyncIOMotorClient(url, w="majority")["raw"]

    async def start(self) -> None:
        await self._database.command("ping")

    async def count(self, events: Sequence[LedgerEvent]) -> int:
        ids = [event.event_id for event in events]
        found = await self._database.events.find({"_id": {"$in": ids}}, {"_id": 1}).to_list(None)
        known = {document["_id"] for document in found}
        new = [event for event in events if event.event_id not in known]
        await self._database.events.insert_many([event.to_document() for event in new], ordered=False)
        await self._database.amounts.bulk_write(
            [UpdateOne({"_id": key}, {"$inc": amounts}, upsert=True) for key, amounts in _amounts_of(new)],
            ordered=False,
        )
        return len(new)


def _amounts_of(events: Sequence[LedgerEvent]) -> list[tuple[str, dict[str, int]]]:
    """Returns what the events add to each counter and rollup, by a text key."""
    increments = increments_of(events)
    both = [*increments.counters.items(), *increments.rollups.items()]
    return [("|".join(key), amounts) for key, amounts in both]
