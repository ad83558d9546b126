"""The sums of removed events, and the step by which events are being removed, as documents."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from services.usage.batch_registry import StoredBatchRegistry
from services.usage.increments import Increments
from services.usage.ledger_documents import (
    EVENTS,
    counter_fields,
    counter_id,
    rollup_fields,
    rollup_id,
    uncounted_among,
)
from services.usage.ledger_event import LedgerEvent
from services.usage.retention import Sealing
from shared.contracts.contract import format_utc
from shared.storage.documents import Collection, CollectionSpec, Database

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
