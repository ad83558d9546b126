"""Accepted records in the gateway's store."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from services.gateway.quota.held_work import EndedWork, HeldWork, Spent
from services.gateway.upgrades.accept import KeyTaken
from services.gateway.upgrades.accepted_record import AcceptedRecord
from shared.contracts.contract import format_utc, id_floor, now_utc
from shared.contracts.upgrade_tasks import Stage
from shared.storage.documents import Collection, CollectionSpec, DuplicateKey, Filter, Index

_MOST_SWEPT = 2_000
_MOST_RATED = 20_000
_PAGE = 500
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
    """Reads and writes of accepted records. Every call may raise StorageUnavailable."""

    def __init__(self, records: Collection) -> None:
        self._records = records

    async def insert(self, record: AcceptedRecord) -> None:
        """One durable insert. Raises KeyTaken when the tenant uses the idempotency key already."""
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
        """The tenant's record of that id; None also for what another tenant owns."""
        document = await self._records.get(upgrade_id)
        if document is None or document["tenantId"] != tenant_id:
            return None
        return AcceptedRecord.from_document(document)

    async def page(
        self, tenant_id: str, *, before: str | None, outcomes: Sequence[str], user_ref: str | None, limit: int
    ) -> list[AcceptedRecord]:
        """A tenant's records, newest first, from before the upgrade id `before` on; any outcome when none is named."""
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

        Walks in the order of the index over `openSince`, so that a page costs the same however many are open. Records
        opened in the millisecond where a page ended are read again with the next one, which therefore asks for more.
        """
        since, given = "", set[str]()
        while True:
            where = {"openSince": {"$gte": since, "$lt": moment}}
            found = await self._records.find(where, sort=[("openSince", 1)], limit=size + len(given))
            if ids := [document["_id"] for document in found if document["_id"] not in given]:
                yield ids
            if len(found) < size + len(given):
                return
            last = found[-1]["openSince"]
            given = {document["_id"] for document in found if document["openSince"] == last} | (
                given if last == since else set()
            )
            since = last

    async def unpublished(self, cluster_id: str, accepted_before: str, after: str, limit: int) -> list[AcceptedRecord]:
        """Open records that the log `cluster_id` has not confirmed, oldest first, with ids above `after`."""
        where = {"openSince": {"$lt": accepted_before}, "publishedOn": {"$ne": cluster_id}, "_id": {"$gt": after}}
        return self._parsed(await self._records.find(where, sort=[("_id", 1)], limit=limit))

    async def unfinished(self, tenant_id: str, period: str, limit: int) -> list[AcceptedRecord]:
        """A tenant's records of a period that are open or not counted, of each at most `limit`, oldest first."""
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
        """Tenant and period of the `limit` oldest ends that usage was not yet known to have counted."""
        where = {"uncountedSince": {"$exists": True}}
        found = await self._records.find(where, sort=[("uncountedSince", 1)], limit=limit)
        return {(document["tenantId"], document["period"]) for document in found}

    async def mark_published(self, upgrade_ids: Sequence[str], cluster_id: str) -> None:
        await self._records.update_many({"_id": {"$in": list(upgrade_ids)}}, {"$set": {"publishedOn": cluster_id}})

    async def mark_ended(self, ends: Sequence[EndedWork]) -> None:
        """Records ends; what is known to have ended already is left alone."""
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
                        # Only where it is so: the index has no others.
                        | ({"cutShort": True} if end.cut_short else {}),
                        "$unset": {"openSince": ""},
                    },
                )
                for end in ends
            ]
        )

    async def cut_short(self, after: str, limit: int) -> list[AcceptedRecord]:
        """Records whose stages are to be asked what they have spent, oldest first, with ids above `after`."""
        where = {"cutShort": True, "_id": {"$gt": after}}
        return self._parsed(await self._records.find(where, sort=[("_id", 1)], limit=limit))

    async def mark_asked(
        self, upgrade_id: str, spent: Sequence[Spent], asked: Sequence[Stage], *, all_known: bool
    ) -> None:
        """What was spent, as far as the stages that were asked know; with `all_known` it holds no more than that."""
        told = {"spent": [item.to_document() for item in spent], "asked": [stage.value for stage in asked]}
        change: dict[str, Any] = {"$set": told} | ({"$unset": {"cutShort": ""}} if all_known else {})
        await self._records.update_one({"_id": upgrade_id, "cutShort": True}, change)

    async def mark_told(self, upgrade_id: str) -> bool:
        """Notes that somebody was told of the record, so that it stays; False when it was taken back."""
        return await self._records.update_one({"_id": upgrade_id}, {"$set": {"told": True}}) > 0

    async def remove(self, upgrade_id: str) -> bool:
        """Takes back a record whose client is told that nothing was accepted; False when another was told of it."""
        await self._records.delete_many({"_id": upgrade_id, "told": {"$exists": False}})
        return await self._records.get(upgrade_id) is None

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
                "erasureSince": {"$exists": False},
            }
        )

    async def to_erase(
        self, tenant_id: str, user_ref: str | None, *, before: str | None, limit: int
    ) -> list[AcceptedRecord]:
        """What is left to erase of a tenant, or of one of its users, newest first."""
        return await self.page(tenant_id, before=before, outcomes=(), user_ref=user_ref, limit=limit)

    async def erase(self, records: Sequence[AcceptedRecord], now: datetime) -> None:
        """Erases what was said, here and at once; the placeholder map goes first of all."""
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
        """Records of upgrades accepted before that which are open or not counted, and not erased."""
        found: list[AcceptedRecord] = []
        for since in ("openSince", "uncountedSince"):
            where = {"createdAt": {"$lt": created_before}, since: {"$exists": True}, "erasedAt": {"$exists": False}}
            found += self._parsed(await self._records.find(where, sort=[(since, 1)], limit=limit))
        return found

    async def erasing(self, after: str, limit: int) -> list[AcceptedRecord]:
        """Erased records of which other stores may still have something, oldest first, with ids above `after`."""
        where = {"erasureSince": {"$exists": True}, "_id": {"$gt": after}}
        return self._parsed(await self._records.find(where, sort=[("_id", 1)], limit=limit))

    async def erased(self, upgrade_ids: Sequence[str]) -> None:
        """Nothing is left of them anywhere."""
        await self._records.update_many({"_id": {"$in": list(upgrade_ids)}}, {"$unset": {"erasureSince": ""}})

    async def _pages(self, where: Filter, limit: int, after: str = "") -> AsyncIterator[list[AcceptedRecord]]:
        """At most `limit` records, oldest first, so many at a time that nobody else has to wait for them."""
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
    """Accepted upgrades as work that holds something. Every call may raise StorageUnavailable."""

    def __init__(self, store: AcceptedStore) -> None:
        self._store = store

    async def unfinished(self, tenant_id: str, period: str, limit: int) -> list[HeldWork]:
        return [record.held_work() for record in await self._store.unfinished(tenant_id, period, limit)]

    async def with_hold(self, hold_ids: Sequence[str]) -> list[HeldWork]:
        return [record.held_work() for record in await self._store.get_many(hold_ids)] if hold_ids else []

    async def counted(self, hold_ids: Sequence[str]) -> None:
        await self._store.mark_counted(hold_ids)

    async def uncounted_tenants(self) -> set[tuple[str, str]]:
        return await self._store.uncounted_tenants(_MOST_SWEPT)

    async def rates(self, tenant_id: str, since: datetime) -> dict[str, dict[str, int]]:
        """By user or credential: what was accepted since then, with its time in ms."""
        rates: dict[str, dict[str, int]] = {}
        for record in await self._store.accepted_since(tenant_id, since, _MOST_RATED):
            subject = record.user_ref or record.credential_id
            rates.setdefault(subject, {})[record.upgrade_id] = round(record.created_at.timestamp() * 1000)
        return rates
