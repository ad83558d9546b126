"""Stores the registry of open batches, and defines the window that lets counters detect a batch they already have.

Every counter and rollup document must refuse a batch that it has already, however late the batch is applied again, and
without keeping the number of every batch. It stores two things:

- `recentBatches`: the numbers of the last `RECENT` batches applied to it;
- `batchFloor`: a number at or below which it refuses every batch.

The window makes these sufficient. Batch n is opened only when every unfinished batch has a number above n - WINDOW.
So when n is applied, all batches up to n - WINDOW are finished, and the floor may rise to that number. A batch k
above the floor is refused by the list: only batches with numbers between k - WINDOW and k + WINDOW can have been
applied after it, fewer than `RECENT`, so k is still in the list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.usage.counting.count_batch import CountingInterrupted, OpenBatch
from shared.storage.documents import CollectionSpec, Database

BATCHES = CollectionSpec("batch_registry")
GIVEN_UP = CollectionSpec("batches_given_up")

# Small, since every counter and rollup stores its list. While the batch of a dead process waits for its lease to
# expire, the other processes can open this many more.
WINDOW = 8
RECENT = 2 * WINDOW
LEASE_SECONDS = 5.0

_ID = "registry"
_BEGIN_ATTEMPTS = 100
_MOST_GIVEN_UP = 100_000


@dataclass(frozen=True)
class Progress:
    """The registry at one moment: the last number assigned, and the open batches."""

    last: int
    open_numbers: frozenset[int]

    def had_closed(self, number: int) -> bool:
        """Whether the batch had been counted or given up by then."""
        return number <= self.last and number not in self.open_numbers


class StoredBatchRegistry:
    """`BatchRegistry` on one document: `{last, open: {b<number>: {state, owner, leasedUntil}}}`.

    Declares its collections, so create it before the database is started.
    """

    def __init__(self, database: Database) -> None:
        self._collection = database.collection(BATCHES)
        self._given_up = database.collection(GIVEN_UP)

    async def begin(self, owner: str, leased_until: float) -> int | None:
        # One update assigns the number and opens the batch, so no number exists that was never listed as open.
        for _ in range(_BEGIN_ATTEMPTS):
            registry = await self._read()
            number = int(registry["last"]) + 1
            unfinished = [batch.number for batch in _open_batches(registry) if batch.state != "given up"]
            if not may_begin(number, unfinished):
                return None
            opened = {"state": "storing", "owner": owner, "leasedUntil": leased_until}
            if await self._collection.update_one(
                {"_id": _ID, "last": registry["last"]}, {"$set": {"last": number, _field(number): opened}}
            ):
                return number
        raise CountingInterrupted("other processes began a batch first at every attempt")

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
        await self._record_given_up(batch.number)
        return True

    async def given_up_batches(self) -> list[int]:
        for batch in _open_batches(await self._read()):
            if batch.state == "given up":
                await self._record_given_up(batch.number)
        stored = await self._given_up.find({}, sort=[("_id", 1)], limit=_MOST_GIVEN_UP)
        return [int(document["_id"]) for document in stored]

    async def close(self, number: int) -> None:
        await self._collection.update_one({"_id": _ID}, {"$unset": {_field(number): ""}})

    async def open_batches(self) -> list[OpenBatch]:
        return _open_batches(await self._read())

    async def progress(self) -> Progress:
        """The last number and the open batches, as of now."""
        registry = await self._read()
        return Progress(int(registry["last"]), frozenset(batch.number for batch in _open_batches(registry)))

    async def uncounted_among(self, events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Those of the stored events whose batch is open or given up. Call it after the events have been read."""
        numbers = {int(event["batchId"]) for event in events}
        if not numbers:
            return []
        uncounted = {batch.number for batch in await self.open_batches()} & numbers
        given_up = await self._given_up.get_many([batch_id(number) for number in numbers - uncounted])
        uncounted |= {int(document["_id"]) for document in given_up}
        return [event for event in events if int(event["batchId"]) in uncounted]

    async def _record_given_up(self, number: int) -> None:
        # Recorded before it is closed: a batch that is neither open nor given up is a counted one.
        await self._given_up.insert_if_absent({"_id": batch_id(number)})
        await self.close(number)

    async def _read(self) -> dict[str, Any]:
        registry = await self._collection.get(_ID)
        if registry is None:
            registry, _ = await self._collection.insert_if_absent({"_id": _ID, "last": 0, "open": {}})
        return registry


def may_begin(number: int, unfinished: list[int]) -> bool:
    """Whether batch `number` may be opened while these batches are unfinished."""
    return all(number - other < WINDOW for other in unfinished)


def floor_after(number: int) -> int:
    """The highest batch number that is certainly finished while batch `number` is counted; 0 when there is none."""
    return max(0, number - WINDOW)


def batch_id(number: int) -> str:
    """A batch number as the ledger stores it: text that sorts in the order of the numbers."""
    return f"{number:015d}"


def _field(number: int) -> str:
    return f"open.b{number}"


def _unchanged(batch: OpenBatch) -> dict[str, Any]:
    """Matches the registry only while the batch is as it was read."""
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
