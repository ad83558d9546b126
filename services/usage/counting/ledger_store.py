"""Stores the ledger of usage events, the counters and rollups made from it, and the totals of pruned events."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.usage.counting.batch_registry import RECENT, Progress, StoredBatchRegistry, batch_id, floor_after
from services.usage.counting.increments import CounterKey, Increments, RollupKey
from services.usage.counting.ledger_event import LedgerEvent
from services.usage.counting.retention import PruneStep
from shared.contracts.contract import format_utc, now_utc
from shared.contracts.internal_http import TenantCounters
from shared.storage.documents import Collection, CollectionSpec, Database, Index

EVENTS = CollectionSpec("usage_events", (Index(("batchId",)),))
COUNTERS = CollectionSpec("tenant_counters")
# A rollup's id begins with the fields it is read by. That saves an index, which every batch would have to update.
ROLLUPS = CollectionSpec("daily_rollups")
PRUNE_STEP = CollectionSpec("ledger_sealing")
SEALED_COUNTERS = CollectionSpec("sealed_counters")
SEALED_ROLLUPS = CollectionSpec("sealed_rollups")

STEP_EVENTS = 500
_PAGE = 2000
_NO_LIMIT = 1_000_000
_PRUNE_STEP_ID = "sealing"


@dataclass(frozen=True)
class Standing:
    """A tenant's counters, and which of the requested events they did not include at their version `as_of`."""

    counters: TenantCounters
    as_of: int
    missing: list[str]


class LedgerStore:
    """`Ledger` of `count_batch`, and the queries on it. Declares its collections: create it before the database starts.

    Every method may raise StorageUnavailable.
    """

    def __init__(self, database: Database) -> None:
        self.registry = StoredBatchRegistry(database)
        self.sealed = SealedSumsStore(database, self.registry)
        self._events = database.collection(EVENTS)
        self._counters = database.collection(COUNTERS)
        self._rollups = database.collection(ROLLUPS)

    async def store(self, events: Sequence[LedgerEvent], number: int) -> set[str]:
        batch = {"batchId": batch_id(number), "storedAt": format_utc(now_utc())}
        return await self._events.insert_many_if_absent([{**event.to_document(), **batch} for event in events])

    async def add(self, increments: Increments, number: int) -> None:
        # A version that rises with every batch orders two readings of a tenant's counters.
        counters = [
            DocumentIncrement(_counter_id(key), _counter_fields(key), {**amounts, "version": 1})
            for key, amounts in increments.counters.items()
        ]
        # Concurrently, so that a store with group commit puts both into one commit.
        await asyncio.gather(
            _add_batch(self._counters, counters, number),
            _add_batch(self._rollups, _rollup_increments(increments), number),
        )

    async def events_of(self, number: int) -> list[LedgerEvent]:
        stored = await self._events.find({"batchId": batch_id(number)}, limit=_NO_LIMIT)
        return [LedgerEvent.from_document(document) for document in stored]

    async def first_with_events(self, numbers: Sequence[int]) -> int | None:
        event = await self._events.find_one({"batchId": {"$in": [batch_id(number) for number in numbers]}})
        return None if event is None else int(event["batchId"])

    async def move(self, from_number: int, to_number: int) -> int:
        return await self._events.update_many(
            {"batchId": batch_id(from_number)}, {"$set": {"batchId": batch_id(to_number)}}
        )

    async def missing(self, event_ids: Sequence[str]) -> list[str]:
        """The ids that are not in the ledger as counted events, in the given order."""
        stored = await self._events.get_many(event_ids)
        uncounted = {event["_id"] for event in await self.uncounted_among(stored)}
        counted = {event["_id"] for event in stored} - uncounted
        return [event_id for event_id in event_ids if event_id not in counted]

    async def uncounted_among(self, events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Those of the stored events whose batch is open or given up. Call it after the events have been read."""
        return await self.registry.uncounted_among(events)

    async def progress(self) -> Progress:
        """The last batch number and the open batches, as of now."""
        return await self.registry.progress()

    async def counters(self, tenant_id: str, period: str) -> TenantCounters:
        """The tenant's counters in a period (`YYYY-MM`); zeros when nothing was counted."""
        document = await self._counters.get(_counter_id(CounterKey(tenant_id, period)))
        return TenantCounters(tenant_id=tenant_id, period=period) if document is None else _counters_of(document)

    async def counters_of(self, keys: Sequence[CounterKey]) -> list[TenantCounters]:
        """The counters of these tenants and periods; those without any counted event are left out."""
        return [_counters_of(document) for document in await self._counters.get_many([_counter_id(k) for k in keys])]

    async def standing(
        self, tenant_id: str, period: str, event_ids: Sequence[str], as_of: int | None = None
    ) -> Standing | None:
        """The counters, and which of these events they lack; None when the counters changed while this was read.

        Counters include an event as soon as they have its batch, shortly before the batch is closed; if they do not
        change, they also included all closed batches from the start. Each batch raises their version by 1, so
        their list of recent batches also tells what an earlier version `as_of` lacked. The present version is used
        when `as_of` is too old for that list.
        """
        id = _counter_id(CounterKey(tenant_id, period))
        before = await self._counters.get(id)
        stored = await self._events.get_many(event_ids)
        uncounted = {event["_id"] for event in await self.uncounted_among(stored)}
        if await self._counters.get(id) != before:
            return None
        counters = _counters_of(before) if before else TenantCounters(tenant_id=tenant_id, period=period)
        batches = [batch_id(number) for number in before["recentBatches"]] if before else []
        since = 0 if as_of is None else counters.version - as_of
        if not 0 <= since <= len(batches):
            since = 0
        included, later = set(batches[: len(batches) - since]), set(batches[len(batches) - since :])
        included_events = {
            event["_id"]
            for event in stored
            if event["batchId"] in included or (event["_id"] not in uncounted and event["batchId"] not in later)
        }
        missing = [event_id for event_id in event_ids if event_id not in included_events]
        return Standing(counters, counters.version - since, missing)

    async def rollups(self, tenant_id: str, kind: str, from_day: str, to_day: str) -> list[dict[str, Any]]:
        """The rollups of one kind by day, `from_day` inclusive, `to_day` exclusive."""
        of_kind = f"{tenant_id}|{kind}|"
        return await self._rollups.find(
            {"_id": {"$gte": of_kind + from_day, "$lt": of_kind + to_day}}, sort=[("_id", 1)], limit=_NO_LIMIT
        )

    async def page_of_events(self, after_id: str) -> list[dict[str, Any]]:
        """The stored events that follow an id, in the order of ids; empty at the end. Start with an empty id."""
        return await _page(self._events, after_id)

    async def page_of_counters(self, after_id: str) -> list[dict[str, Any]]:
        """The counter documents that follow an id, in the order of ids."""
        return await _page(self._counters, after_id)

    async def page_of_rollups(self, after_id: str) -> list[dict[str, Any]]:
        """The rollup documents that follow an id, in the order of ids."""
        return await _page(self._rollups, after_id)


class SealedSumsStore:
    """`PrunableLedger` of `retention`, and the sealed sums for reconciling. Create it before the database starts.

    A sum's `sealedThrough` is the number of the last step added to it.
    """

    def __init__(self, database: Database, registry: StoredBatchRegistry) -> None:
        self._registry = registry
        self._events = database.collection(EVENTS)
        self._step = database.collection(PRUNE_STEP)
        self._counters = database.collection(SEALED_COUNTERS)
        self._rollups = database.collection(SEALED_ROLLUPS)

    async def current_step(self) -> PruneStep:
        stored = await self._step.get(_PRUNE_STEP_ID)
        if stored is None:
            return PruneStep()
        return PruneStep(stored["number"], stored["state"], tuple(stored["eventIds"]), stored["pausedUntil"])

    async def pause(self, until: datetime) -> None:
        """Prevents new steps until that moment; a step that has begun continues."""
        await self._create_step()
        await self._step.update_one({"_id": _PRUNE_STEP_ID}, {"$set": {"pausedUntil": format_utc(until)}})

    async def oldest_counted_events(self, stored_before: datetime) -> list[LedgerEvent]:
        # Batch numbers rise with time, so the lowest numbers have the oldest events.
        stored = await self._events.find({}, sort=[("batchId", 1)], limit=STEP_EVENTS)
        uncounted = {event["_id"] for event in await self._registry.uncounted_among(stored)}
        before = format_utc(stored_before)
        return [
            LedgerEvent.from_document(event)
            for event in stored
            if event["storedAt"] < before and event["_id"] not in uncounted
        ]

    async def begin_step(self, last: PruneStep, event_ids: Sequence[str]) -> bool:
        await self._create_step()
        begun = {"number": last.number + 1, "state": "adding", "eventIds": list(event_ids)}
        unchanged = {"_id": _PRUNE_STEP_ID, "number": last.number, "state": "idle"}
        return await self._step.update_one(unchanged, {"$set": begun}) == 1

    async def events_by_id(self, event_ids: Sequence[str]) -> list[LedgerEvent]:
        return [LedgerEvent.from_document(event) for event in await self._events.get_many(event_ids)]

    async def add_to_sealed_sums(self, increments: Increments, number: int) -> None:
        counters = [
            DocumentIncrement(_counter_id(key), _counter_fields(key), amounts)
            for key, amounts in increments.counters.items()
        ]
        await _add_step(self._counters, counters, number)
        await _add_step(self._rollups, _rollup_increments(increments), number)

    async def start_deleting(self, number: int) -> bool:
        this_step = {"_id": _PRUNE_STEP_ID, "number": number, "state": {"$in": ["adding", "removing"]}}
        return await self._step.update_one(this_step, {"$set": {"state": "removing"}}) == 1

    async def delete(self, event_ids: Sequence[str]) -> None:
        await self._events.delete_many({"_id": {"$in": list(event_ids)}})

    async def end_step(self, number: int) -> None:
        this_step = {"_id": _PRUNE_STEP_ID, "number": number, "state": "removing"}
        await self._step.update_one(this_step, {"$set": {"state": "idle", "eventIds": []}})

    async def page_of_sealed_counters(self, after_id: str) -> list[dict[str, Any]]:
        """The sealed counters that follow an id, in the order of ids; empty at the end. Start with an empty id."""
        return await _page(self._counters, after_id)

    async def page_of_sealed_rollups(self, after_id: str) -> list[dict[str, Any]]:
        """The sealed rollups that follow an id, in the order of ids."""
        return await _page(self._rollups, after_id)

    async def _create_step(self) -> None:
        await self._step.insert_if_absent(
            {"_id": _PRUNE_STEP_ID, "number": 0, "state": "idle", "eventIds": [], "pausedUntil": ""}
        )


@dataclass(frozen=True, slots=True)
class DocumentIncrement:
    """The amounts to add to one document, and the fields it gets when it is created."""

    id: str
    fields: Mapping[str, Any]
    amounts: Mapping[str, int]


def _rollup_increments(increments: Increments) -> list[DocumentIncrement]:
    return [
        DocumentIncrement(_rollup_id(key), _rollup_fields(key), amounts) for key, amounts in increments.rollups.items()
    ]


async def _add_batch(collection: Collection, increments: Sequence[DocumentIncrement], number: int) -> None:
    """Adds the amounts to each document that does not have the batch. Check and change are one atomic update."""
    await collection.update_each(
        [
            (
                {"_id": one.id, "recentBatches": {"$ne": number}, "batchFloor": {"$lt": number}},
                {
                    "$inc": one.amounts,
                    "$push": {"recentBatches": {"$each": [number], "$slice": -RECENT}},
                    "$max": {"batchFloor": floor_after(number)},
                    "$setOnInsert": one.fields,
                },
            )
            for one in increments
        ],
        upsert=True,
    )


async def _add_step(collection: Collection, increments: Sequence[DocumentIncrement], number: int) -> None:
    """Adds the amounts to each sum that does not have the step. Check and change are one atomic update."""
    await collection.update_each(
        [
            (
                {"_id": one.id, "sealedThrough": {"$lt": number}},
                {"$inc": one.amounts, "$max": {"sealedThrough": number}, "$setOnInsert": one.fields},
            )
            for one in increments
        ],
        upsert=True,
    )


async def _page(collection: Collection, after_id: str) -> list[dict[str, Any]]:
    return await collection.find({"_id": {"$gt": after_id}}, sort=[("_id", 1)], limit=_PAGE)


def _counter_id(key: CounterKey) -> str:
    return f"{key.tenant_id}|{key.period}"


def _counter_fields(key: CounterKey) -> dict[str, Any]:
    return {"tenantId": key.tenant_id, "period": key.period}


def _rollup_id(key: RollupKey) -> str:
    return f"{key.tenant_id}|{key.kind}|{key.day}|{key.origin}|{key.key}"


def _rollup_fields(key: RollupKey) -> dict[str, Any]:
    return {"tenantId": key.tenant_id, "day": key.day, "origin": key.origin, "kind": key.kind, "key": key.key}


def _counters_of(document: Mapping[str, Any]) -> TenantCounters:
    return TenantCounters(
        tenant_id=document["tenantId"],
        period=document["period"],
        upgrades=document.get("upgrades", 0),
        tokens=document.get("tokens", 0),
        embeddings=document.get("embeddings", 0),
        cost_nano_usd=document.get("costNanoUsd", 0),
        version=document["version"],
    )
