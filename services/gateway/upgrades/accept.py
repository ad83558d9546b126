"""Accepts an upgrade: admits it, and writes its record, once per idempotency key."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.gateway.http.problems import IDEMPOTENCY_WINDOW, IdempotencyKeyReused, ProblemError
from services.gateway.identity.caller import Caller
from services.gateway.quota.admission import Admission, Admissions, Claim, Rate
from services.gateway.quota.holds import AnswerLimits
from services.gateway.quota.recording import RECORD_WITHIN_SECONDS, Existing, record_in_time
from services.gateway.upgrades.accepted_record import AcceptedRecord
from services.gateway.upgrades.idempotency_keys import AcceptedRecords, IdempotencyKeys, KeyTaken
from services.gateway.upgrades.preparing import DocumentLookup, PreparedUpgrade, PrepareUpgrade
from shared.contracts.contract import now_utc
from shared.contracts.problems import UNAVAILABLE
from shared.contracts.upgrade_http import UpgradeRequest
from shared.contracts.upgrade_tasks import UpgradeTask
from shared.privacy.sealing import Vault

_ADMIT_ATTEMPTS = 3


class EarlierErased(Exception):
    """The upgrade that owns the idempotency key was erased: it has no result, and a new upgrade is not made."""


@dataclass(frozen=True)
class Acceptance:
    """The record that answers a request; `replayed` if an earlier request with the same key made it.

    `user_prompt` is the prompt as the client sent it, None for a replay.
    """

    record: AcceptedRecord
    task: UpgradeTask
    replayed: bool
    rate: Rate | None = None
    user_prompt: str | None = None


class AcceptUpgrade:
    """The use case. An upgrade has `deadline_seconds`; `replica_id` names the gateway replica that gets the reply."""

    def __init__(
        self,
        *,
        records: AcceptedRecords,
        admissions: Admissions,
        documents: DocumentLookup,
        vault: Vault,
        limits: AnswerLimits,
        deadline_seconds: float,
        replica_id: str,
        clock: Callable[[], datetime] = now_utc,
    ) -> None:
        self._records = records
        self._admissions = admissions
        self._clock = clock
        self._keys = IdempotencyKeys(records, clock)
        self.prepare = PrepareUpgrade(
            documents=documents,
            vault=vault,
            limits=limits,
            deadline=timedelta(seconds=deadline_seconds),
            replica_id=replica_id,
            clock=clock,
        )

    async def __call__(
        self,
        caller: Caller,
        request: UpgradeRequest,
        *,
        idempotency_key: str | None = None,
        traceparent: str | None = None,
    ) -> Acceptance:
        """Accepts the upgrade, or returns the earlier one that owns the idempotency key.

        Raises IdempotencyKeyReused, EarlierErased, KeyTaken, StorageUnavailable, and ProblemError from admission. Then
        nothing is recorded.
        """
        prepared = await self.prepare(caller, request, idempotency_key, traceparent)
        for _ in range(_ADMIT_ATTEMPTS):
            try:
                admission = await self._admissions.admit(prepared.hold)
            except ProblemError as refusal:
                return await self._replay_or_refuse(prepared, refusal)
            if admission.claim is None:
                return await self._record(prepared, admission, request.user_prompt)
            earlier = await self._keys.wait_for_claimant(prepared.record, admission.claim)
            if earlier is not None:
                return _replay(earlier, prepared, admission.rate)
            await self._admissions.release_claim(prepared.hold, admission.claim)
        raise KeyTaken

    async def _replay_or_refuse(self, prepared: PreparedUpgrade, refusal: ProblemError) -> Acceptance:
        """A repeated request gets its upgrade even when its claim was lost with Redis and there is no room left."""
        earlier = await self._keys.owner(prepared.record) if refusal.problem is not UNAVAILABLE else None
        if earlier is None:
            raise refusal
        self._restore_claim(prepared, earlier)
        return _replay(earlier, prepared, None)

    async def _record(self, prepared: PreparedUpgrade, admission: Admission, user_prompt: str) -> Acceptance:
        """Records the admitted upgrade in time, or replays the one that owns its key after all."""
        record = prepared.record
        result = await record_in_time(
            lambda: self._keys.insert(record),
            withdraw=lambda: self._records.withdraw(record.upgrade_id),
            release=lambda: self._admissions.release(prepared.hold),
            until=admission.at + RECORD_WITHIN_SECONDS,
        )
        if isinstance(result, Existing):
            self._restore_claim(prepared, result.record)
            return _replay(result.record, prepared, admission.rate)
        return Acceptance(record, prepared.task, replayed=False, rate=admission.rate, user_prompt=user_prompt)

    def _restore_claim(self, prepared: PreparedUpgrade, earlier: AcceptedRecord) -> None:
        """The claim was lost with Redis. With it restored, the next repeated request needs no search for the owner."""
        claim = Claim(earlier.upgrade_id, earlier.body_hash or "")
        self._admissions.restore_claim(prepared.hold, claim, earlier.created_at + IDEMPOTENCY_WINDOW - self._clock())


def _replay(earlier: AcceptedRecord, prepared: PreparedUpgrade, rate: Rate | None) -> Acceptance:
    if earlier.body_hash != prepared.record.body_hash:
        raise IdempotencyKeyReused
    if earlier.erased_at is not None:
        raise EarlierErased
    return Acceptance(earlier, earlier.first_task(), replayed=True, rate=rate)
