"""The registry of batches that are not counted yet, and the numbers that make each batch count exactly once."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from services.usage.counting.count_batch import CountingInterrupted, OpenBatch
from shared.storage.documents import CollectionSpec, Database

# Small, since every counter and rollup carries its list. Others get this far while the batch of a process that died
# waits for the end of its lease.
WINDOW = 8
RECENT = 2 * WINDOW
LEASE_SECONDS = 5.0


def may_begin(number: int, open_numbers: list[int]) -> bool:
    """Whether batch `number` may begin while these are open."""
    return all(number - other < WINDOW for other in open_numbers)


def floor_after(number: int) -> int:
    """The highest batch number that is surely closed once batch `number` is being counted; never below 0."""
    return max(0, number - WINDOW)


BATCHES = CollectionSpec("batch_registry")
GIVEN_UP = CollectionSpec("batches_given_up")

_ID = "registry"
_RACES_TOLERATED = 100
_MOST_GIVEN_UP = 100_000


@dataclass(frozen=True)
class Progress:
    """The last number that was given out, and the batches that were open, as of one moment."""

    last: int
    open_numbers: frozenset[int]

    def had_closed(self, number: int) -> bool:
        """Whether the batch was counted by then, or given up."""
        return number <= self.last and number not in self.open_numbers


class StoredBatchRegistry:
    """`BatchRegistry` on a document `{last, open: {b<number>: {state, owner, leasedUntil}}}`.

    Declares its collections: make it before the database is started.
    """

    def __init__(self, database: Database) -> None:
        self._collection = database.collection(BATCHES)
        self._given_up = database.collection(GIVEN_UP)

    async def begin(self, owner: str, leased_until: float) -> int | None:
        # Taking the number and opening the batch is one update: no number exists that is not seen as open.
        for _ in range(_RACES_TOLERATED):
            registry = await self._read()
            number = int(registry["last"]) + 1
            at_work = [batch.number for batch in _open_batches(registry) if batch.state != "given up"]
            if not may_begin(number, at_work):
                return None
            opened = {"state": "storing", "owner": owner, "leasedUntil": leased_until}
            if await self._collection.update_one(
                {"_id": _ID, "last": registry["last"]}, {"$set": {"last": number, _field(number): opened}}
            ):
                return number
        raise CountingInterrupted("other processes are always faster to begin a batch")

    async def start_counting(self, number: int, owner: str, leased_until: float) -> bool:
        field = _field(number)
        matched = await self._collection.update_one(
            {"_id": _ID, f"{field}.state": "storing", f"{field}.owner": owner},
            {"$set": {f"{field}.state": "counting", f"{field}.leasedUntil": leased_until}},
        )
        return matched == 1

    async def take_over(self, batch: OpenBatch, owner: str, leased_until: float) -> bool:
        field = _field(batch.number)
        matched = await self._collection.update_one(
            _unchanged(batch), {"$set": {f"{field}.owner": owner, f"{field}.leasedUntil": leased_until}}
        )
        return matched == 1

    async def give_up(self, batch: OpenBatch) -> bool:
        field = _field(batch.number)
        if not await self._collection.update_one(_unchanged(batch), {"$set": {f"{field}.state": "given up"}}):
            return False
        await self._remember_given_up(batch.number)
        return True

    async def given_up(self) -> list[int]:
        for batch in _open_batches(await self._read()):
            if batch.state == "given up":
                await self._remember_given_up(batch.number)
        stored = await self._given_up.find({}, sort=[("_id", 1)], limit=_MOST_GIVEN_UP)
        return [int(document["_id"]) for document in stored]

    async def close(self, number: int) -> None:
        await self._collection.update_one({"_id": _ID}, {"$unset": {_field(number): ""}})

    async def open_batches(self) -> list[OpenBatch]:
        return _open_batches(await self._read())

    async def progress(self) -> Progress:
        registry = await self._read()
        return Progress(int(registry["last"]), frozenset(batch.number for batch in _open_batches(registry)))

    async def uncounted_among(self, numbers: Collection[int]) -> set[int]:
        """Those of the batches that are open or given up. Ask after the events that you ask it for were read."""
        waiting = {batch.number for batch in await self.open_batches()} & set(numbers)
        remembered = await self._given_up.get_many([batch_id(number) for number in set(numbers) - waiting])
        return waiting | {int(document["_id"]) for document in remembered}

    async def _remember_given_up(self, number: int) -> None:
        # In this order, so that at no moment a batch that was given up looks like one that was counted.
        await self._given_up.insert_if_absent({"_id": batch_id(number)})
        await self.close(number)

    async def _read(self) -> dict[str, Any]:
        registry = await self._collection.get(_ID)
        if registry is None:
            registry, _ = await self._collection.insert_if_absent({"_id": _ID, "last": 0, "open": {}})
        return registry


def batch_id(number: int) -> str:
    """A batch's number as the ledger writes it: text that sorts as the number does."""
    return f"{number:015d}"


def _field(number: int) -> str:
    return f"open.b{number}"


def _unchanged(batch: OpenBatch) -> dict[str, Any]:
    field = _field(batch.number)
    return {
        "_id": _ID,
        f"{field}.state": batch.state,
        f"{field}.owner": batch.owner,
        f"{field}.leasedUntil": batch.leased_until,
    }


def _open_batches(registry: dict[str, Any]) -> list[OpenBatch]:
    return [
        OpenBatch(int(name[1:]), entry["state"], entry["owner"], entry["leasedUntil"])
        for name, entry in registry["open"].items()
    ]
