"""Holds on embeddings that rag takes for documents and searches, with a stored record of each.

The record outlives a loss of Redis: a rebuilt admission state contains the hold again.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from services.gateway.http.problems import ProblemError
from services.gateway.quota.held_work import HeldWork, Spent
from services.gateway.quota.holds import Hold, HoldSize
from services.gateway.quota.quota_admissions import QuotaAdmissions
from services.gateway.quota.recording import RECORD_WITHIN_SECONDS, Existing, Written, record_in_time
from shared.contracts.contract import format_utc, now_utc
from shared.contracts.problems import CONFLICT
from shared.contracts.quota import EmbeddingsHold, EmbeddingsHoldEnd
from shared.storage.documents import Collection, CollectionSpec, Index

_FIRST_CHECK_AFTER = timedelta(minutes=5)
_KEPT_FOR = timedelta(days=2)
_MAX_SWEPT = 2_000
_END_ATTEMPTS = 2

DOCUMENT_HOLDS = CollectionSpec(
    name="document_holds",
    indexes=(
        Index(fields=("tenantId", "openSince"), only_when_present="openSince"),
        Index(fields=("tenantId", "uncountedSince"), only_when_present="uncountedSince"),
        Index(fields=("uncountedSince",), only_when_present="uncountedSince"),
        Index(fields=("createdAt",)),
    ),
)


class DocumentHolds:
    """Takes and ends holds. Every method may raise StorageUnavailable.

    Both calls may be repeated, but after a failed `take` the caller has to end that hold and take one with another id.
    """

    def __init__(
        self, records: Collection, admissions: QuotaAdmissions, clock: Callable[[], datetime] = now_utc
    ) -> None:
        self._records = records
        self._admissions = admissions
        self._clock = clock

    async def take(self, request: EmbeddingsHold) -> None:
        """Admits and records the hold. Raises ProblemError: quota_exceeded, unavailable, conflict for an ended hold.

        Admission comes first: a record without an admission would become a hold when a state is rebuilt.
        """
        standing = await self._records.get(request.hold_id)
        if standing is not None:
            _refuse_ended(standing)
            return
        now = self._clock()
        record = {
            "_id": request.hold_id,
            "tenantId": request.tenant_id,
            "period": request.period,
            "embeddings": request.embeddings,
            "tokens": request.tokens,
            "createdAt": format_utc(now),
            "openSince": format_utc(now),
            "givenUpAt": format_utc(now + timedelta(seconds=request.lives_seconds)),
        }
        hold = _hold_of(record)
        admission = await self._admissions.admit_document(hold)
        result = await record_in_time(
            lambda: self._insert(record),
            withdraw=lambda: self._withdraw(request.hold_id),
            release=lambda: self._admissions.release(hold),
            until=admission.at + RECORD_WITHIN_SECONDS,
        )
        if isinstance(result, Existing):
            _refuse_ended(result.record)

    async def end(self, hold_id: str, ended: EmbeddingsHoldEnd) -> None:
        """Replaces the hold by the real usage, which stays held until usage has counted it.

        An unknown hold is recorded as ended, since the request that takes it may arrive later than this one.
        """
        spent = [
            Spent(event_id=item.event_id, tokens=item.tokens, embeddings=item.embeddings).to_document()
            for item in ended.spent
        ]
        update = {
            "$set": {"spent": spent, "uncountedSince": format_utc(self._clock())},
            "$unset": {"openSince": ""},
        }
        for _ in range(_END_ATTEMPTS):
            record = await self._records.find_one_and_update({"_id": hold_id, "openSince": {"$exists": True}}, update)
            if record is not None:
                settlement = _work_of(record).settlement()
                await self._admissions.settle_holds(record["tenantId"], record["period"], [settlement])
                return
            ended_before_taken = {"_id": hold_id, "createdAt": format_utc(self._clock())}
            _, inserted = await self._records.insert_if_absent(ended_before_taken)
            if inserted:
                return
            # The hold had ended already, or was recorded between the two writes: then the second attempt ends it.

    async def forget_old(self) -> None:
        """Ends holds that were not ended within their life, and deletes old records that are finished."""
        now = self._clock()
        await self._records.update_many(
            {"openSince": {"$exists": True}, "givenUpAt": {"$lt": format_utc(now)}},
            {"$set": {"spent": [], "uncountedSince": format_utc(now)}, "$unset": {"openSince": ""}},
        )
        finished = {"openSince": {"$exists": False}, "uncountedSince": {"$exists": False}}
        await self._records.delete_many({"createdAt": {"$lt": format_utc(now - _KEPT_FOR)}, **finished})

    async def _insert(self, record: dict[str, Any]) -> Written | Existing[dict[str, Any]]:
        """Two concurrent requests for the same hold share one record, and both count as written."""
        standing, _ = await self._records.insert_if_absent(record)
        return Written() if "openSince" in standing else Existing(standing)

    async def _withdraw(self, hold_id: str) -> bool:
        await self._records.delete_many({"_id": hold_id})
        return True


class DocumentWork:
    """The `WorkRecords` of documents and searches."""

    def __init__(self, records: Collection) -> None:
        self._records = records

    async def unfinished(self, tenant_id: str, period: str, limit: int) -> list[HeldWork]:
        found: dict[str, HeldWork] = {}
        for since in ("openSince", "uncountedSince"):
            where = {"tenantId": tenant_id, "period": period, since: {"$exists": True}}
            for record in await self._records.find(where, sort=[(since, 1)], limit=limit):
                found[record["_id"]] = _work_of(record)
        return list(found.values())

    async def with_hold(self, hold_ids: Sequence[str]) -> list[HeldWork]:
        found = await self._records.get_many(hold_ids) if hold_ids else []
        # A hold that ended before it was taken has a record without a tenant.
        return [_work_of(record) for record in found if "tenantId" in record]

    async def mark_counted(self, hold_ids: Sequence[str]) -> None:
        await self._records.update_many({"_id": {"$in": list(hold_ids)}}, {"$unset": {"uncountedSince": ""}})

    async def uncounted_tenants(self) -> set[tuple[str, str]]:
        where = {"uncountedSince": {"$exists": True}}
        found = await self._records.find(where, sort=[("uncountedSince", 1)], limit=_MAX_SWEPT)
        return {(record["tenantId"], record["period"]) for record in found}


def _refuse_ended(record: dict[str, Any]) -> None:
    if "openSince" not in record:
        raise ProblemError(CONFLICT, "This hold has ended.")


def _work_of(record: dict[str, Any]) -> HeldWork:
    created_at = datetime.fromisoformat(record["createdAt"])
    return HeldWork(
        hold_id=record["_id"],
        size=HoldSize(0, record["tokens"], record["embeddings"]),
        expires_at=created_at + _FIRST_CHECK_AFTER,
        ended="openSince" not in record,
        spent=tuple(Spent.model_validate(item) for item in record.get("spent", [])),
    )


def _hold_of(record: dict[str, Any]) -> Hold:
    work = _work_of(record)
    return Hold(
        tenant_id=record["tenantId"],
        hold_id=work.hold_id,
        period=record["period"],
        size=work.size,
        expires_at=work.expires_at,
    )
