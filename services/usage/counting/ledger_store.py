"""The ledger, the counters, the rollups, and the sums of pruned events as documents."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.usage.counting.batch_registry import RECENT, Progress, StoredBatchRegistry, batch_id, floor_after
from services.usage.counting.increments import CounterKey, Increments, RollupKey
from services.usage.counting.ledger_event import LedgerEvent
from services.usage.counting.retention import Sealing
from shared.contracts.contract import format_utc, now_utc
from shared.contracts.internal_http import TenantCounters
from shared.storage.documents import Collection, CollectionSpec, Database, Index

EVENTS = CollectionSpec("usage_events", (Index(("batchId",)),))
VERSION = "version"
"""Of a tenant's counters: raised by each count, so that of two readings the newer one is known."""
COUNTERS = CollectionSpec("tenant_counters")
# The id of a rollup begins with what it is looked up by, which saves an index that every count would have to keep.
ROLLUPS = CollectionSpec("daily_rollups")


def counter_id(key: CounterKey) -> str:
    return f"{key.tenant_id}|{key.period}"


def counter_fields(key: CounterKey) -> dict[str, Any]:
    return {"tenantId": key.tenant_id, "period": key.period}


def rollup_id(key: RollupKey) -> str:
    return f"{key.tenant_id}|{key.kind}|{key.day}|{key.origin}|{key.key}"


def rollup_fields(key: RollupKey) -> dict[str, Any]:
    return {"tenantId": key.tenant_id, "day": key.day, "origin": key.origin, "kind": key.kind, "key": key.key}


async def uncounted_among(
    registry: StoredBatchRegistry, events: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Those of the stored events, read before, whose batch is not closed."""
    batches = {int(event["batchId"]) for event in events}
    waiting = await registry.uncounted_among(batches) if batches else set()
    return [event for event in events if int(event["batchId"]) in waiting]


SEALING = CollectionSpec("ledger_sealing")
SEALED_COUNTERS = CollectionSpec("sealed_counters")
SEALED_ROLLUPS = CollectionSpec("sealed_rollups")

STEP_EVENTS = 500
_PAGE = 2000
_ID = "sealing"


class SealedStore:
    """`SealedLedger` of `retention`, and what reconciling reads of it. Make it before the database is started."""

    def __init__(self, database: Database, registry: StoredBatchRegistry) -> None:
        self._registry = registry
        self._events = database.collection(EVENTS)
        self._sealing = database.collection(SEALING)
        self._counters = database.collection(SEALED_COUNTERS)
        self._rollups = database.collection(SEALED_ROLLUPS)

    async def sealing(self) -> Sealing:
        stored = await self._sealing.get(_ID)
        if stored is None:
            return Sealing()
        return Sealing(stored["number"], stored["state"], tuple(stored["eventIds"]), stored["pausedUntil"])

    async def pause(self, until: datetime) -> None:
        """No step is begun before that moment; one that is under way goes on."""
        await self._there()
        await self._sealing.update_one({"_id": _ID}, {"$set": {"pausedUntil": format_utc(until)}})

    async def oldest_counted(self, stored_before: datetime) -> list[LedgerEvent]:
        # Batches are numbered as time goes by, so the lowest numbers are the oldest events.
        stored = await self._events.find({}, sort=[("batchId", 1)], limit=STEP_EVENTS)
        waiting = {event["_id"] for event in await uncounted_among(self._registry, stored)}
        before = format_utc(stored_before)
        return [
            LedgerEvent.from_document(event)
            for event in stored
            if event["storedAt"] < before and event["_id"] not in waiting
        ]

    async def begin_sealing(self, last: Sealing, event_ids: Sequence[str]) -> bool:
        await self._there()
        begun = {"number": last.number + 1, "state": "adding", "eventIds": list(event_ids)}
        still = {"_id": _ID, "number": last.number, "state": "idle"}
        return await self._sealing.update_one(still, {"$set": begun}) == 1

    async def events_among(self, event_ids: Sequence[str]) -> list[LedgerEvent]:
        return [LedgerEvent.from_document(event) for event in await self._events.get_many(event_ids)]

    async def add_sealed(self, increments: Increments, number: int) -> None:
        counters = [(counter_id(k), counter_fields(k), a) for k, a in increments.counters.items()]
        rollups = [(rollup_id(k), rollup_fields(k), a) for k, a in increments.rollups.items()]
        await _add_all(self._counters, counters, number)
        await _add_all(self._rollups, rollups, number)

    async def begin_removing(self, number: int) -> bool:
        this = {"_id": _ID, "number": number, "state": {"$in": ["adding", "removing"]}}
        return await self._sealing.update_one(this, {"$set": {"state": "removing"}}) == 1

    async def remove(self, event_ids: Sequence[str]) -> None:
        await self._events.delete_many({"_id": {"$in": list(event_ids)}})

    async def end_sealing(self, number: int) -> None:
        this = {"_id": _ID, "number": number, "state": "removing"}
        await self._sealing.update_one(this, {"$set": {"state": "idle", "eventIds": []}})

    async def page_of_sealed_counters(self, after_id: str) -> list[dict[str, Any]]:
        """The next sums of counters in the order of their ids; empty at the end. Start with an empty id."""
        return await self._counters.find({"_id": {"$gt": after_id}}, sort=[("_id", 1)], limit=_PAGE)

    async def page_of_sealed_rollups(self, after_id: str) -> list[dict[str, Any]]:
        """The next sums of rollups in the order of their ids; empty at the end."""
        return await self._rollups.find({"_id": {"$gt": after_id}}, sort=[("_id", 1)], limit=_PAGE)

    async def _there(self) -> None:
        await self._sealing.insert_if_absent(
            {"_id": _ID, "number": 0, "state": "idle", "eventIds": [], "pausedUntil": ""}
        )


async def _add_all(
    collection: Collection, sums: Sequence[tuple[str, Mapping[str, Any], Mapping[str, int]]], number: int
) -> None:
    await collection.update_each(
        [
            (
                {"_id": id, "sealedThrough": {"$lt": number}},
                {"$inc": amounts, "$max": {"sealedThrough": number}, "$setOnInsert": fields},
            )
            for id, fields, amounts in sums
        ],
        upsert=True,
    )


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
