"""Holds on embeddings for documents: the gateway keeps a record of each, since Redis may lose its own."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from services.gateway.http.problems import ProblemError
from services.gateway.quota.admission import Hold
from services.gateway.quota.held_work import HeldWork, Spent
from services.gateway.quota.holds import HoldSize
from services.gateway.quota.quota_admissions import QuotaAdmissions
from services.gateway.quota.recording import RECORD_WITHIN_SECONDS, record_in_time
from shared.contracts.contract import format_utc, now_utc
from shared.contracts.problems import CONFLICT
from shared.contracts.quota import EmbeddingsHold, EmbeddingsHoldEnd
from shared.storage.documents import Collection, CollectionSpec, Index

DOCUMENT_HOLDS = CollectionSpec(
    name="document_holds",
    indexes=(
        Index(fields=("tenantId", "openSince"), only_when_present="openSince"),
        Index(fields=("tenantId", "uncountedSince"), only_when_present="uncountedSince"),
        Index(fields=("uncountedSince",), only_when_present="uncountedSince"),
        Index(fields=("createdAt",)),
    ),
)
LOOKED_AT_AFTER = timedelta(minutes=5)
_KEPT_FOR = timedelta(days=2)
_MOST_SWEPT = 2_000
_ATTEMPTS_TO_END = 2


class DocumentHolds:
    """Takes and ends holds. Both may be repeated, taking only until it has failed: then the hold is to be ended, and
    another try has one of its own. Raises StorageUnavailable and ProblemError."""

    def __init__(
        self, records: Collection, admissions: QuotaAdmissions, clock: Callable[[], datetime] = now_utc
    ) -> None:
        self._records = records
        self._admissions = admissions
        self._clock = clock

    async def take(self, asked: EmbeddingsHold) -> None:
        """Admits and records, in this order: a record without an admission would be held when a state is rebuilt."""
        standing = await self._records.get(asked.hold_id)
        if standing is not None:
            _refuse_ended(standing)
            return
        now = self._clock()
        record = {
            "_id": asked.hold_id,
            "tenantId": asked.tenant_id,
            "period": asked.period,
            "embeddings": asked.embeddings,
            "tokens": asked.tokens,
            "createdAt": format_utc(now),
            "openSince": format_utc(now),
            "givenUpAt": format_utc(now + timedelta(seconds=asked.lives_seconds)),
        }
        hold = _hold(record)
        admission = await self._admissions.admit_document(hold)
        ended = await record_in_time(
            lambda: self._insert(record),
            take_back=lambda: self._remove(asked.hold_id),
            release=lambda: self._admissions.release(hold),
            until=admission.at + RECORD_WITHIN_SECONDS,
        )
        if ended is not None:
            _refuse_ended(ended)

    async def _insert(self, record: dict[str, Any]) -> dict[str, Any] | None:
        """Gives a record that stands in its place and has ended. Whoever asks twice at once has one hold and record."""
        standing, _ = await self._records.insert_if_absent(record)
        return None if "openSince" in standing else standing

    async def _remove(self, hold_id: str) -> bool:
        await self._records.delete_many({"_id": hold_id})
        return True

    async def end(self, hold_id: str, ended: EmbeddingsHoldEnd) -> None:
        """The hold becomes what was used, and stays until usage has counted that.

        One that is not known is ended for good: the request that takes it may be slower than the one that ends it.
        """
        spent = [
            Spent(event_id=item.event_id, tokens=item.tokens, embeddings=item.embeddings).to_document()
            for item in ended.spent
        ]
        update = {
            "$set": {"spent": spent, "uncountedSince": format_utc(self._clock())},
            "$unset": {"openSince": ""},
        }
        for _ in range(_ATTEMPTS_TO_END):
            record = await self._records.find_one_and_update({"_id": hold_id, "openSince": {"$exists": True}}, update)
            if record is not None:
                await self._admissions.settle_document(record["tenantId"], record["period"], work_of(record))
                return
            never_begun = {"_id": hold_id, "createdAt": format_utc(self._clock())}
            if (await self._records.insert_if_absent(never_begun))[1]:
                return
            # It has ended before, or was recorded this very moment.

    async def forget_old(self) -> None:
        """Gives up what nobody ended in time, deletes what is finished."""
        now = self._clock()
        await self._records.update_many(
            {"openSince": {"$exists": True}, "givenUpAt": {"$lt": format_utc(now)}},
            {"$set": {"spent": [], "uncountedSince": format_utc(now)}, "$unset": {"openSince": ""}},
        )
        finished = {"openSince": {"$exists": False}, "uncountedSince": {"$exists": False}}
        await self._records.delete_many({"createdAt": {"$lt": format_utc(now - _KEPT_FOR)}, **finished})


class DocumentWork:
    """Documents that are being indexed as work that holds something. Every call may raise StorageUnavailable."""

    def __init__(self, records: Collection) -> None:
        self._records = records

    async def unfinished(self, tenant_id: str, period: str, limit: int) -> list[HeldWork]:
        found: dict[str, HeldWork] = {}
        for since in ("openSince", "uncountedSince"):
            where = {"tenantId": tenant_id, "period": period, since: {"$exists": True}}
            for record in await self._records.find(where, sort=[(since, 1)], limit=limit):
                found[record["_id"]] = work_of(record)
        return list(found.values())

    async def with_hold(self, hold_ids: Sequence[str]) -> list[HeldWork]:
        found = await self._records.get_many(hold_ids) if hold_ids else []
        return [work_of(record) for record in found if "tenantId" in record]

    async def counted(self, hold_ids: Sequence[str]) -> None:
        await self._records.update_many({"_id": {"$in": list(hold_ids)}}, {"$unset": {"uncountedSince": ""}})

    async def uncounted_tenants(self) -> set[tuple[str, str]]:
        where = {"uncountedSince": {"$exists": True}}
        found = await self._records.find(where, sort=[("uncountedSince", 1)], limit=_MOST_SWEPT)
        return {(record["tenantId"], record["period"]) for record in found}


def _refuse_ended(record: dict[str, Any]) -> None:
    if "openSince" not in record:
        raise ProblemError(CONFLICT, "This hold has ended.")


def work_of(record: dict[str, Any]) -> HeldWork:
    """A stored hold as admission sees it."""
    created_at = datetime.fromisoformat(record["createdAt"])
    return HeldWork(
        hold_id=record["_id"],
        size=HoldSize(0, record["tokens"], record["embeddings"]),
        expires_at=created_at + LOOKED_AT_AFTER,
        ended="openSince" not in record,
        spent=tuple(Spent.model_validate(item) for item in record.get("spent", [])),
    )


def _hold(record: dict[str, Any]) -> Hold:
    work = work_of(record)
    return Hold(
        tenant_id=record["tenantId"],
        upgrade_id=work.hold_id,
        period=record["period"],
        size=work.size,
        expires_at=work.expires_at,
        subject="",
    )
