"""The ledger, the counters and the rollups as documents."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from services.usage.batch_window import RECENT, floor_after
from services.usage.increments import CounterKey, Increments, RollupKey
from services.usage.ledger_event import LedgerEvent
from shared.contracts.contract import format_utc, now_utc
from shared.contracts.internal_http import TenantCounters
from shared.storage.documents import Collection, CollectionSpec, Database, DuplicateKey, Index

# An event has its batch only while it is not counted, so the index over it stays small.
EVENTS = CollectionSpec("usage_events", (Index(("batchId",), only_when_present="batchId"),))
COUNTERS = CollectionSpec("tenant_counters")
ROLLUPS = CollectionSpec("daily_rollups", (Index(("tenantId", "kind", "day")),))

_AT_ONCE = 512
_PAGE = 2000


class LedgerStore:
    """`Ledger` of `count_batch`, and what is read from it. Declares its collections: make it before the start."""

    def __init__(self, database: Database) -> None:
        self._events = database.collection(EVENTS)
        self._counters = database.collection(COUNTERS)
        self._rollups = database.collection(ROLLUPS)

    async def store(self, events: Sequence[LedgerEvent], number: int) -> set[str]:
        now = format_utc(now_utc())
        batch = {"batchId": _batch_id(number), "counted": False, "storedAt": now}
        return await self._events.insert_many_if_absent([{**event.to_document(), **batch} for event in events])

    async def add(self, increments: Increments, number: int) -> None:
        raises = [
            _raise(self._counters, _counter_id(key), _counter_fields(key), {**amounts, "version": 1}, number)
            for key, amounts in increments.counters.items()
        ]
        raises += [
            _raise(self._rollups, _rollup_id(key), _rollup_fields(key), amounts, number)
            for key, amounts in increments.rollups.items()
        ]
        await _some_at_once(raises)

    async def mark_counted(self, number: int) -> None:
        await self._events.update_many(
            {"batchId": _batch_id(number)}, {"$set": {"counted": True}, "$unset": {"batchId": ""}}
        )

    async def uncounted(self, number: int) -> list[LedgerEvent]:
        stored = await self._events.find({"batchId": _batch_id(number)}, limit=1_000_000)
        return [LedgerEvent.from_document(document) for document in stored]

    async def stranded_batch(self, open_numbers: Sequence[int]) -> int | None:
        known = [_batch_id(number) for number in open_numbers]
        event = await self._events.find_one({"batchId": {"$gt": "", "$nin": known}})
        return None if event is None else int(event["batchId"])

    async def move(self, from_number: int, to_number: int) -> int:
        return await self._events.update_many(
            {"batchId": _batch_id(from_number)}, {"$set": {"batchId": _batch_id(to_number)}}
        )

    async def missing(self, event_ids: Sequence[str]) -> list[str]:
        """Those of the ids that are not in the ledger as counted, in their order."""
        known = {document["_id"] for document in await self._events.get_many(event_ids) if document["counted"]}
        return [event_id for event_id in event_ids if event_id not in known]

    async def counters(self, tenant_id: str, period: str) -> TenantCounters:
        """Zeros when nothing was counted."""
        document = await self._counters.get(_counter_id(CounterKey(tenant_id, period)))
        return TenantCounters(tenant_id=tenant_id, period=period) if document is None else _counters_of(document)

    async def rollups(self, tenant_id: str, kind: str, from_day: str, to_day: str) -> list[dict[str, Any]]:
        """The rollups of one kind, `from_day` inclusive, `to_day` exclusive, by day."""
        return await self._rollups.find(
            {"tenantId": tenant_id, "kind": kind, "day": {"$gte": from_day, "$lt": to_day}},
            sort=[("day", 1)],
            limit=1_000_000,
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


async def _raise(
    collection: Collection, id: str, fields: Mapping[str, Any], amounts: Mapping[str, int], number: int
) -> None:
    """Adds the amounts once per batch: one update checks that the document lacks the batch, and adds it."""
    lacking = {"_id": id, "recentBatches": {"$ne": number}, "batchFloor": {"$lt": number}}
    change = {
        "$inc": dict(amounts),
        "$push": {"recentBatches": {"$each": [number], "$slice": -RECENT}},
        "$max": {"batchFloor": floor_after(number)},
    }
    try:
        await collection.update_one(lacking, {**change, "$setOnInsert": dict(fields)}, upsert=True)
    except DuplicateKey:
        # The document has this batch, or another process made it at this moment. The latter matches now.
        await collection.update_one(lacking, change)


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


def _batch_id(number: int) -> str:
    return f"{number:015d}"


def _counter_id(key: CounterKey) -> str:
    return f"{key.tenant_id}|{key.period}"


def _counter_fields(key: CounterKey) -> dict[str, Any]:
    return {"tenantId": key.tenant_id, "period": key.period}


def _rollup_id(key: RollupKey) -> str:
    return f"{key.tenant_id}|{key.day}|{key.origin}|{key.kind}|{key.key}"


def _rollup_fields(key: RollupKey) -> dict[str, Any]:
    return {"tenantId": key.tenant_id, "day": key.day, "origin": key.origin, "kind": key.kind, "key": key.key}


async def _some_at_once(writes: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Awaits all, few enough at a time for the store's queue, many enough to share its commits."""
    try:
        for at in range(0, len(writes), _AT_ONCE):
            await asyncio.gather(*writes[at : at + _AT_ONCE])
    finally:
        for write in writes:
            write.close()
