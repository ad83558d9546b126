"""Accepted records in the gateway's store."""

from collections.abc import Sequence
from typing import Any

from services.gateway.accept import KeyTaken
from services.gateway.accepted_record import AcceptedRecord
from shared.contracts.contract import format_utc, now_utc
from shared.contracts.upgrade_results import UpgradeStatus
from shared.storage.documents import Collection, CollectionSpec, DuplicateKey, Index

ACCEPTED = CollectionSpec(
    name="accepted_upgrades",
    indexes=(
        Index(fields=("tenantId", "idempotencyKey"), unique=True, only_when_present="idempotencyKey"),
        Index(fields=("tenantId", "_id")),
        Index(fields=("createdAt",)),
        Index(fields=("openSince",), only_when_present="openSince"),
        Index(fields=("uncountedSince",), only_when_present="uncountedSince"),
    ),
)


class AcceptedStore:
    """Reads and writes of accepted records. Every call may raise StorageUnavailable."""

    def __init__(self, records: Collection) -> None:
        self._records = records

    async def insert(self, record: AcceptedRecord) -> None:
        """One durable insert. Raises KeyTaken when the tenant uses the idempotency key already."""
        try:
            await self._records.insert(record.to_document())
        except DuplicateKey as error:
            if "idempotencyKey" in error.index_fields:
                raise KeyTaken from None
            raise

    async def find_by_key(self, tenant_id: str, idempotency_key: str) -> AcceptedRecord | None:
        document = await self._records.find_one({"tenantId": tenant_id, "idempotencyKey": idempotency_key})
        return AcceptedRecord.from_document(document) if document else None

    async def release_key(self, record: AcceptedRecord) -> None:
        await self._records.update_one(
            {"_id": record.upgrade_id, "idempotencyKey": record.idempotency_key}, {"$unset": {"idempotencyKey": ""}}
        )

    async def find(self, tenant_id: str, upgrade_id: str) -> AcceptedRecord | None:
        """The tenant's record of that id; None also for what another tenant owns."""
        document = await self._records.get(upgrade_id)
        if document is None or document["tenantId"] != tenant_id:
            return None
        return AcceptedRecord.from_document(document)

    async def page(
        self, tenant_id: str, *, before: str | None, outcomes: Sequence[str], user_ref: str | None, limit: int
    ) -> list[AcceptedRecord]:
        """A tenant's records, newest first, from before the upgrade id `before` on; any outcome when none is named."""
        where: dict[str, Any] = {"tenantId": tenant_id}
        if before:
            where["_id"] = {"$lt": before}
        if outcomes:
            where["outcome"] = {"$in": list(outcomes)}
        if user_ref:
            where["userRef"] = user_ref
        return self._parsed(await self._records.find(where, sort=[("_id", -1)], limit=limit))

    async def open_before(self, moment: str, after: str, limit: int) -> list[AcceptedRecord]:
        """Open records accepted before `moment`, oldest first, with ids above `after`."""
        where = {"openSince": {"$lt": moment}, "_id": {"$gt": after}}
        return self._parsed(await self._records.find(where, sort=[("_id", 1)], limit=limit))

    async def unpublished(self, cluster_id: str, accepted_before: str, after: str, limit: int) -> list[AcceptedRecord]:
        """Open records that the log `cluster_id` has not confirmed, oldest first, with ids above `after`."""
        where = {"openSince": {"$lt": accepted_before}, "publishedOn": {"$ne": cluster_id}, "_id": {"$gt": after}}
        return self._parsed(await self._records.find(where, sort=[("_id", 1)], limit=limit))

    async def uncounted(self, after: str, limit: int) -> list[str]:
        """Ids of ended upgrades that usage was not yet known to have counted, oldest first, above `after`."""
        where = {"uncountedSince": {"$exists": True}, "_id": {"$gt": after}}
        return [found["_id"] for found in await self._records.find(where, sort=[("_id", 1)], limit=limit)]

    async def mark_published(self, upgrade_ids: Sequence[str], cluster_id: str) -> None:
        await self._records.update_many({"_id": {"$in": list(upgrade_ids)}}, {"$set": {"publishedOn": cluster_id}})

    async def mark_ended(self, upgrade_ids: Sequence[str], outcome: UpgradeStatus) -> None:
        """Records an end; what is known to have ended already is left alone."""
        await self._records.update_many(
            {"_id": {"$in": list(upgrade_ids)}, "openSince": {"$exists": True}},
            {"$set": {"outcome": outcome.value, "uncountedSince": format_utc(now_utc())}, "$unset": {"openSince": ""}},
        )

    async def mark_counted(self, upgrade_ids: Sequence[str]) -> None:
        await self._records.update_many({"_id": {"$in": list(upgrade_ids)}}, {"$unset": {"uncountedSince": ""}})

    async def claim_expiry(self, record: AcceptedRecord, next_expiry: str) -> bool:
        """Takes the next hand-over of an expired record, so that of several replicas only one does it."""
        won = await self._records.update_one(
            {"_id": record.upgrade_id, "expiries": record.expiries, "openSince": {"$exists": True}},
            {"$set": {"expiries": record.expiries + 1, "nextExpiry": next_expiry}},
        )
        return won == 1

    async def delete_closed(self, created_before: str) -> int:
        """Deletes records that nothing waits for; gives how many."""
        return await self._records.delete_many(
            {
                "createdAt": {"$lt": created_before},
                "openSince": {"$exists": False},
                "uncountedSince": {"$exists": False},
            }
        )

    @staticmethod
    def _parsed(documents: Sequence[dict[str, Any]]) -> list[AcceptedRecord]:
        return [AcceptedRecord.from_document(document) for document in documents]
