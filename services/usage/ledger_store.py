"""The ledger, the counters and the rollups as documents."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.usage.batch_registry import Progress, StoredBatchRegistry, batch_id
from services.usage.batch_window import RECENT, floor_after
from services.usage.increments import CounterKey, Increments
from services.usage.ledger_documents import (
    COUNTERS,
    EVENTS,
    ROLLUPS,
    VERSION,
    counter_fields,
    counter_id,
    rollup_fields,
    rollup_id,
    uncounted_among,
)
from services.usage.ledger_event import LedgerEvent
from services.usage.sealed_store import SealedStore
from shared.contracts.contract import format_utc, now_utc
from shared.contracts.internal_http import TenantCounters
from shared.storage.documents import Collection, Database

_PAGE = 2000


@dataclass(frozen=True)
class Standing:
    """Counters, and which events they lacked when they had the version `as_of`."""

    counters: TenantCounters
    as_of: int
    missing: list[str]


class LedgerStore:
    """`Ledger` of `count_batch`, and what is read from it. Declares its collections: make it before the start."""

    def __init__(self, database: Database) -> None:
        self.registry = StoredBatchRegistry(database)
        self.sealed = SealedStore(database, self.registry)
        self._events = database.collection(EVENTS)
        self._counters = database.collection(COUNTERS)
        self._rollups = database.collection(ROLLUPS)

    async def store(self, events: Sequence[LedgerEvent], number: int) -> set[str]:
        batch = {"batchId": batch_id(number), "storedAt": format_utc(now_utc())}
        return await self._events.insert_many_if_absent([{**event.to_document(), **batch} for event in events])

    async def add(self, increments: Increments, number: int) -> None:
        counters = [
            Raise(counter_id(key), counter_fields(key), {**amounts, VERSION: 1})
            for key, amounts in increments.counters.items()
        ]
        rollups = [Raise(rollup_id(key), rollup_fields(key), amounts) for key, amounts in increments.rollups.items()]
        # Side by side, so that a store that commits in groups commits them together.
        await asyncio.gather(_raise_all(self._counters, counters, number), _raise_all(self._rollups, rollups, number))

    async def events_of(self, number: int) -> list[LedgerEvent]:
        stored = await self._events.find({"batchId": batch_id(number)}, limit=1_000_000)
        return [LedgerEvent.from_document(document) for document in stored]

    async def first_with_events(self, numbers: Sequence[int]) -> int | None:
        event = await self._events.find_one({"batchId": {"$in": [batch_id(number) for number in numbers]}})
        return None if event is None else int(event["batchId"])

    async def move(self, from_number: int, to_number: int) -> int:
        return await self._events.update_many(
            {"batchId": batch_id(from_number)}, {"$set": {"batchId": batch_id(to_number)}}
        )

    async def missing(self, event_ids: Sequence[str]) -> list[str]:
        """Those of the ids that are not in the ledger as counted, in their order."""
        stored = await self._events.get_many(event_ids)
        uncounted = {event["_id"] for event in await self.uncounted_among(stored)}
        known = {event["_id"] for event in stored} - uncounted
        return [event_id for event_id in event_ids if event_id not in known]

    async def uncounted_among(self, events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Those of the stored events, read before, whose batch is not closed."""
        return await uncounted_among(self.registry, events)

    async def progress(self) -> Progress:
        """Which batches had been closed by now."""
        return await self.registry.progress()

    async def counters(self, tenant_id: str, period: str) -> TenantCounters:
        """Zeros when nothing was counted."""
        document = await self._counters.get(counter_id(CounterKey(tenant_id, period)))
        return TenantCounters(tenant_id=tenant_id, period=period) if document is None else _counters_of(document)

    async def standing(
        self, tenant_id: str, period: str, event_ids: Sequence[str], as_of: int | None = None
    ) -> Standing | None:
        """The counters, and which of these events of theirs they lack; None when they changed meanwhile.

        An event is in the counters from the moment they have its batch, a little before the batch is closed. While
        the counters do not change, what is closed was in them from the beginning. Each batch raises their version by
        1, so their last batches also tell what they lacked `as_of` an earlier version.
        """
        id = counter_id(CounterKey(tenant_id, period))
        before = await self._counters.get(id)
        stored = await self._events.get_many(event_ids)
        waiting = {event["_id"] for event in await self.uncounted_among(stored)}
        if await self._counters.get(id) != before:
            return None
        counters = _counters_of(before) if before else TenantCounters(tenant_id=tenant_id, period=period)
        batches = [batch_id(number) for number in before["recentBatches"]] if before else []
        since = 0 if as_of is None else counters.version - as_of
        if not 0 <= since <= len(batches):
            since = 0
        had, later = set(batches[: len(batches) - since]), set(batches[len(batches) - since :])
        included = {
            event["_id"]
            for event in stored
            if event["batchId"] in had or (event["_id"] not in waiting and event["batchId"] not in later)
        }
        missing = [event_id for event_id in event_ids if event_id not in included]
        return Standing(counters, counters.version - since, missing)

    async def counters_of(self, keys: Sequence[CounterKey]) -> list[TenantCounters]:
        """Those of the counters that exist."""
        return [_counters_of(document) for document in await self._counters.get_many([counter_id(k) for k in keys])]

    async def rollups(self, tenant_id: str, kind: str, from_day: str, to_day: str) -> list[dict[str, Any]]:
        """The rollups of one kind, `from_day` inclusive, `to_day` exclusive, by day."""
        of_kind = f"{tenant_id}|{kind}|"
        return await self._rollups.find(
            {"_id": {"$gte": of_kind + from_day, "$lt": of_kind + to_day}}, sort=[("_id", 1)], limit=1_000_000
        )

    async def page_of_events(self, after_id: str) -> list[dict[str, Any]]:
        """The next stored events in the order of their ids; empty at the end. Start with an empty id."""
        return await self._events.find({"_id": {"$gt": after_id}}, sort=[("_id", 1)], limit=_PAGE)

    async def page_of_counters(self, after_id: str) -> list[dict[str, Any]]:
        """The next counter documents in the order of their ids; empty at the end."""
        return await self._counters.find({"_id": {"$gt": after_id}}, sort=[("_id", 1)], limit=_PAGE)

    async def page_of_rollups(self, after_id: str) -> list[dict[str, Any]]:
        """The next rollup documents in the order of their ids; empty at the end."""
        return await self._rollups.find({"_id": {"$gt": after_id}}, sort=[("_id", 1)], limit=_PAGE)


@dataclass(frozen=True, slots=True)
class Raise:
    """By how much a document is raised, and the fields that it has when it is new."""

    id: str
    fields: Mapping[str, Any]
    amounts: Mapping[str, int]

    def once(self, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Filter and update: what checks that the document lacks the batch also adds it, so it happens once."""
        lacking = {"_id": self.id, "recentBatches": {"$ne": number}, "batchFloor": {"$lt": number}}
        change = {
            "$inc": self.amounts,
            "$push": {"recentBatches": {"$each": [number], "$slice": -RECENT}},
            "$max": {"batchFloor": floor_after(number)},
            "$setOnInsert": self.fields,
        }
        return lacking, change


async def _raise_all(collection: Collection, raises: Sequence[Raise], number: int) -> None:
    """Adds the amounts once per batch."""
    await collection.update_each([one.once(number) for one in raises], upsert=True)


def _counters_of(document: Mapping[str, Any]) -> TenantCounters:
    return TenantCounters(
        tenant_id=document["tenantId"],
        period=document["period"],
        upgrades=document.get("upgrades", 0),
        tokens=document.get("tokens", 0),
        embeddings=document.get("embeddings", 0),
        cost_nano_usd=document.get("costNanoUsd", 0),
        version=document[VERSION],
    )
