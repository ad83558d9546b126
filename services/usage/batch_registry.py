"""The registry of open batches: one document, changed by compare-and-set."""

from typing import Any

from services.usage.batch_window import may_begin
from services.usage.count_batch import CountingInterrupted, OpenBatch
from shared.storage.documents import Collection, CollectionSpec

BATCHES = CollectionSpec("batch_registry")

_ID = "registry"
_RACES_TOLERATED = 100


class StoredBatchRegistry:
    """`BatchRegistry` on a document `{last, open: {b<number>: {state, owner, leasedUntil}}}`."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    async def begin(self, owner: str, leased_until: float) -> int | None:
        # Taking the number and opening the batch is one update: no number exists that is not seen as open.
        for _ in range(_RACES_TOLERATED):
            registry = await self._read()
            number = int(registry["last"]) + 1
            if not may_begin(number, [batch.number for batch in _open_batches(registry)]):
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
        matched = await self._collection.update_one(_unchanged(batch), {"$unset": {_field(batch.number): ""}})
        return matched == 1

    async def close(self, number: int) -> None:
        await self._collection.update_one({"_id": _ID}, {"$unset": {_field(number): ""}})

    async def open_batches(self) -> list[OpenBatch]:
        return _open_batches(await self._read())

    async def _read(self) -> dict[str, Any]:
        registry = await self._collection.get(_ID)
        if registry is None:
            registry, _ = await self._collection.insert_if_absent({"_id": _ID, "last": 0, "open": {}})
        return registry


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
