"""Stores the records of accepted upgrades, and reads them for routes, sweeps and admission."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from services.gateway.quota.held_work import EndedUpgrade, HeldWork, Spent
from services.gateway.upgrades.accepted_record import AcceptedRecord
from services.gateway.upgrades.idempotency_keys import KeyTaken
from shared.contracts.admission_state import to_ms
from shared.contracts.contract import format_utc, id_floor, now_utc
from shared.contracts.upgrade_tasks import Stage
from shared.storage.documents import Collection, CollectionSpec, DuplicateKey, Filter, Index

_MAX_SWEPT = 2_000
_MAX_RATED = 20_000
_PAGE = 500
# An id is made a moment before the time of its record is read.
_ID_BEFORE_RECORD = timedelta(seconds=1)

ACCEPTED = CollectionSpec(
    name="accepted_upgrades",
    indexes=(
        Index(fields=("tenantId", "keyHash"), unique=True, only_when_present="keyHash"),
        Index(fields=("tenantId", "_id")),
        Index(fields=("createdAt",)),
        Index(fields=("openSince",), only_when_present="openSince"),
        Index(fields=("uncountedSince",), only_when_present="uncountedSince"),
        Index(fields=("tenantId", "openSince"), only_when_present="openSince"),
        Index(fields=("tenantId", "uncountedSince"), only_when_present="uncountedSince"),
        Index(fields=("erasureSince",), only_when_present="erasureSince"),
        Index(fields=("cutShort", "_id"), only_when_present="cutShort"),
    ),
)


class AcceptedStore:
    """Reads and writes accepted records, implementing `AcceptedRecords`. Every method may raise StorageUnavailable.

    Times are strings as `format_utc` writes them, unless they are datetimes.
    """

    def __init__(self, records: Collection) -> None:
        self._records = records

    async def insert(self, record: AcceptedRecord) -> None:
        try:
            await self._records.insert(record.to_document())
        except DuplicateKey as error:
            if "keyHash" in error.index_fields:
                raise KeyTaken from None
            raise

    async def find_by_key(self, tenant_id: str, key_hash: str) -> AcceptedRecord | None:
        document = await self._records.find_one({"tenantId": tenant_id, "keyHash": key_hash})
        return AcceptedRecord.from_document(document) if document else None

    async def release_key(self, record: AcceptedRecord) -> None:
        await self._records.update_one(
            {"_id": record.upgrade_id, "keyHash": record.key_hash}, {"$unset": {"keyHash": ""}}
        )

    async def find(self, tenant_id: str, upgrade_id: str) -> AcceptedRecord | None:
        """The tenant's record with this id; None if it belongs to another tenant."""
        document = await self._records.get(upgrade_id)
        if document is None or document["tenantId"] != tenant_id:
            return None
        return AcceptedRecord.from_document(document)

    async def page(
        self, tenant_id: str, *, before: str | None, outcomes: Sequence[str], user_ref: str | None, limit: int
    ) -> list[AcceptedRecord]:
        """A tenant's records that are not erased, newest first, with ids below `before`.

        Without `outcomes` records of any outcome, without `user_ref` of any user.
        """
        where: dict[str, Any] = {"tenantId": tenant_id, "erasedAt": {"$exists": False}}
        if before:
            where["_id"] = {"$lt": before}
        if outcomes:
            where["outcome"] = {"$in": list(outcomes)}
        if user_ref:
            where["userRef"] = user_ref
        return self._parsed(await self._records.find(where, sort=[("_id", -1)], limit=limit))

    async def overdue(self, moment: str, after: str, limit: int) -> list[AcceptedRecord]:
        """Open records whose deadline was before `moment`, oldest first, with ids above `after`."""
        where = {"openSince": {"$lt": moment}, "deadline": {"$lt": moment}, "_id": {"$gt": after}}
        return self._parsed(await self._records.find(where, sort=[("_id", 1)], limit=limit))

    async def open_ids_before(self, moment: str, size: int) -> AsyncIterator[list[str]]:
        """Ids of records open since before `moment`, longest open first, about `size` at a time.

        It follows the index over `openSince`, so a page costs the same however many records are open. Records opened in
        the last millisecond of a page are read again with the next page, whose limit grows by their number.
        """
        since, seen = "", set[str]()
        while True:
            where = {"openSince": {"$gte": since, "$lt": moment}}
            found = await self._records.find(where, sort=[("openSince", 1)], limit=size + len(seen))
            if ids := [document["_id"] for document in found if document["_id"] not in seen]:
                yield ids
            if len(found) < size + len(seen):
                return
            last = found[-1]["openSince"]
            seen = {document["_id"] for document in found if document["openSince"] == last} | (
                seen if last == since else set()
            )
            since = last

    async def unpublished(self, cluster_id: str, accepted_before: str, after: str, limit: int) -> list[AcceptedRecord]:
        """Open records whose message the Kafka cluster has not confirmed, oldest first, with ids above `after`."""
        where = {"openSince": {"$lt": accepted_before}, "publishedOn": {"$ne": cluster_id}, "_id": {"$gt": after}}
        return self._parsed(await self._records.find(where, sort=[("_id", 1)], limit=limit))

    async def unfinished(self, tenant_id: str, period: str, limit: int) -> list[AcceptedRecord]:
        """A tenant's open and uncounted records of a period, at most `limit` of each kind, oldest first."""
        found: dict[str, AcceptedRecord] = {}
        for since in ("openSince", "uncountedSince"):
            where = {"tenantId": tenant_id, "period": period, since: {"$exists": True}}
            async for page in self._pages(where, limit):
                found |= {record.upgrade_id: record for record in page}
        return list(found.values())

    async def accepted_since(self, tenant_id: str, moment: datetime, limit: int) -> list[AcceptedRecord]:
        """A tenant's records accepted at that moment or later, oldest first."""
        pages = self._pages({"tenantId": tenant_id}, limit, after=id_floor(moment - _ID_BEFORE_RECORD))
        return [record async for page in pages for record in page if record.created_at >= moment]

    async def get_many(self, upgrade_ids: Sequence[str]) -> list[AcceptedRecord]:
        return self._parsed(await self._records.get_many(upgrade_ids))

    async def uncounted_tenants(self, limit: int) -> set[tuple[str, str]]:
        """Tenant and period of the `limit` records that have been uncounted longest."""
        where = {"uncountedSince": {"$exists": True}}
        found = await self._records.find(where, sort=[("uncountedSince", 1)], limit=limit)
        return {(document["tenantId"], document["period"]) for document in found}

    async def mark_published(self, upgrade_ids: Sequence[str], cluster_id: str) -> None:
        await self._records.update_many({"_id": {"$in": list(upgrade_ids)}}, {"$set": {"publishedOn": cluster_id}})

    async def mark_ended(self, ends: Sequence[EndedUpgrade]) -> None:
        """Marks open records as ended; records that have ended stay as they are."""
        now = format_utc(now_utc())
        await self._records.update_each(
            [
                (
                    {"_id": end.upgrade_id, "openSince": {"$exists": True}},
                    {
                        "$set": {
                            "outcome": end.outcome.value,
                            "spent": [item.to_document() for item in end.spent],
                            "uncountedSince": now,
                        }
                        # Stored only when true, for the partial index.
                        | ({"cutShort": True} if end.cut_short else {}),
                        "$unset": {"openSince": ""},
                    },
                )
                for end in ends
            ]
        )

    async def cut_short(self, after: str, limit: int) -> list[AcceptedRecord]:
        """Records of upgrades that were cut short and have unreported stages, oldest first, with ids above `after`."""
        where = {"cutShort": True, "_id": {"$gt": after}}
        return self._parsed(await self._records.find(where, sort=[("_id", 1)], limit=limit))

    async def mark_reported(
        self, upgrade_id: str, spent: Sequence[Spent], reported: Sequence[Stage], *, all_known: bool
    ) -> None:
        """Stores the usage known after the reports of some stages; with `all_known` none is unreported any more."""
        known = {"spent": [item.to_document() for item in spent], "asked": [stage.value for stage in reported]}
        change: dict[str, Any] = {"$set": known} | ({"$unset": {"cutShort": ""}} if all_known else {})
        await self._records.update_one({"_id": upgrade_id, "cutShort": True}, change)

    async def keep(self, upgrade_id: str) -> bool:
        return await self._records.update_one({"_id": upgrade_id}, {"$set": {"told": True}}) > 0

    async def withdraw(self, upgrade_id: str) -> bool:
        await self._records.delete_many({"_id": upgrade_id, "told": {"$exists": False}})
        return await self._records.get(upgrade_id) is None

    async def mark_counted(self, upgrade_ids: Sequence[str]) -> None:
        await self._records.update_many({"_id": {"$in": list(upgrade_ids)}}, {"$unset": {"uncountedSince": ""}})

    async def claim_expiry(self, record: AcceptedRecord, next_expiry: str) -> bool:
        """Claims the next publishing of an expired record; True for one of several replicas that try."""
        won = await self._records.update_one(
            {"_id": record.upgrade_id, "expiries": record.expiries, "openSince": {"$exists": True}},
            {"$set": {"expiries": record.expiries + 1, "nextExpiry": next_expiry}},
        )
        return won == 1

    async def delete_closed(self, created_before: str) -> int:
        """Deletes records that are ended, counted and not being erased; returns how many."""
        return await self._records.delete_many(
            {
                "createdAt": {"$lt": created_before},
                "openSince": {"$exists": False},
                "uncountedSince": {"$exists": False},
                "erasureSince": {"$exists": False},
            }
        )

    async def to_erase(
        self, tenant_id: str, user_ref: str | None, *, before: str | None, limit: int
    ) -> list[AcceptedRecord]:
        """Records of a tenant, or of one of its users, that are not erased yet, newest first."""
        return await self.page(tenant_id, before=before, outcomes=(), user_ref=user_ref, limit=limit)

    async def erase(self, records: Sequence[AcceptedRecord], now: datetime) -> None:
        """Erases task content and placeholder maps of the records, each in one write, and marks them for the sweep."""
        at = format_utc(now)
        await asyncio.gather(
            *(
                self._records.update_one(
                    {"_id": record.upgrade_id, "erasedAt": {"$exists": False}},
                    {
                        "$set": {"task": record.erased_task(), "erasedAt": at, "erasureSince": at},
                        "$unset": {"sealedPii": ""},
                    },
                )
                for record in records
            )
        )

    async def unfinished_before(self, created_before: str, limit: int) -> list[AcceptedRecord]:
        """Records of upgrades accepted before then that are open or uncounted, and not erased."""
        found: list[AcceptedRecord] = []
        for since in ("openSince", "uncountedSince"):
            where = {"createdAt": {"$lt": created_before}, since: {"$exists": True}, "erasedAt": {"$exists": False}}
            found += self._parsed(await self._records.find(where, sort=[(since, 1)], limit=limit))
        return found

    async def erasing(self, after: str, limit: int) -> list[AcceptedRecord]:
        """Erased records whose content may remain in other stores, oldest first, with ids above `after`."""
        where = {"erasureSince": {"$exists": True}, "_id": {"$gt": after}}
        return self._parsed(await self._records.find(where, sort=[("_id", 1)], limit=limit))

    async def mark_erased(self, upgrade_ids: Sequence[str]) -> None:
        """Their content is erased in all other stores, too."""
        await self._records.update_many({"_id": {"$in": list(upgrade_ids)}}, {"$unset": {"erasureSince": ""}})

    async def _pages(self, where: Filter, limit: int, after: str = "") -> AsyncIterator[list[AcceptedRecord]]:
        """At most `limit` records, oldest first, in pages small enough not to block other queries."""
        while limit > 0:
            size = min(limit, _PAGE)
            page = self._parsed(
                await self._records.find({**where, "_id": {"$gt": after}}, sort=[("_id", 1)], limit=size)
            )
            if page:
                yield page
            if len(page) < size:
                return
            limit, after = limit - size, page[-1].upgrade_id

    @staticmethod
    def _parsed(documents: Sequence[dict[str, Any]]) -> list[AcceptedRecord]:
        return [AcceptedRecord.from_document(document) for document in documents]


class AcceptedWork:
    """The `WorkRecords` and `RateRecords` of upgrades."""

    def __init__(self, store: AcceptedStore) -> None:
        self._store = store

    async def unfinished(self, tenant_id: str, period: str, limit: int) -> list[HeldWork]:
        return [record.held_work() for record in await self._store.unfinished(tenant_id, period, limit)]

    async def with_hold(self, hold_ids: Sequence[str]) -> list[HeldWork]:
        return [record.held_work() for record in await self._store.get_many(hold_ids)] if hold_ids else []

    async def mark_counted(self, hold_ids: Sequence[str]) -> None:
        await self._store.mark_counted(hold_ids)

    async def uncounted_tenants(self) -> set[tuple[str, str]]:
        return await self._store.uncounted_tenants(_MAX_SWEPT)

    async def rates(self, tenant_id: str, since: datetime) -> dict[str, dict[str, int]]:
        rates: dict[str, dict[str, int]] = {}
        for record in await self._store.accepted_since(tenant_id, since, _MAX_RATED):
            subject = record.user_ref or record.credential_id
            rates.setdefault(subject, {})[record.upgrade_id] = to_ms(record.created_at)
        return rates
