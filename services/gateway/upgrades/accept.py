"""Accepts an upgrade: redacts what the client sent, takes a hold, and writes the record that later steps read."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from services.gateway.http.problems import IDEMPOTENCY_WINDOW, IdempotencyKeyReused, ProblemError
from services.gateway.identity.caller import Caller
from services.gateway.quota.admission import Admission, Admissions, Claim, Hold, Rate
from services.gateway.quota.held_work import WORK_ENDS_WITHIN
from services.gateway.quota.holds import AnswerLimits, HoldSize, UpgradeInput, larger_holds, stage_holds, sum_of_stages
from services.gateway.quota.recording import RECORD_WITHIN_SECONDS, record_in_time
from services.gateway.upgrades.accepted_record import TASK_MODEL, AcceptedRecord, StageHold, StoredHold
from shared.contracts.contract import new_id, now_utc, period_of
from shared.contracts.problems import UNAVAILABLE
from shared.contracts.token_bounds import fits_the_rewrite
from shared.contracts.upgrade_http import UpgradeRequest
from shared.contracts.upgrade_tasks import ConversationMessage, Stage, TaskOptions, UpgradeTask
from shared.privacy.redaction import PlaceholderMap, redact_all
from shared.privacy.sealing import Vault

_REDACTED_IN_THREAD_CHARACTERS = 20_000


async def redacted(request: UpgradeRequest, placeholders: PlaceholderMap) -> tuple[str, list[ConversationMessage]]:
    """Prompt and conversation without personal values, which go into `placeholders`."""
    if _characters(request) > _REDACTED_IN_THREAD_CHARACTERS:
        return await asyncio.to_thread(_redact, request, placeholders)
    return _redact(request, placeholders)


def hold_of_stages(request: UpgradeRequest, task: UpgradeTask, limits: AnswerLimits) -> dict[Stage, HoldSize]:
    """What each stage holds. Where redaction is off, the model reads the values that stand behind placeholders."""
    redacted_texts = [message.content for message in task.conversation_history]
    chunks = request.options.rag_top_k
    shares = stage_holds(UpgradeInput(task.itinerary, task.user_prompt, redacted_texts, chunks), limits)
    if request.options.enable_pii_redaction or not task.placeholder_counts:
        return shares
    texts = [message.content for message in request.conversation_history]
    return larger_holds(shares, stage_holds(UpgradeInput(task.itinerary, request.user_prompt, texts, chunks), limits))


def _characters(request: UpgradeRequest) -> int:
    return len(request.user_prompt) + sum(len(message.content) for message in request.conversation_history)


def _redact(request: UpgradeRequest, placeholders: PlaceholderMap) -> tuple[str, list[ConversationMessage]]:
    # History first: as a conversation grows its earlier messages keep their placeholders, and so their cached summary.
    # All at once: what a later text shows to be a secret is one in the earlier texts too.
    said = request.conversation_history
    *contents, prompt = redact_all([*(message.content for message in said), request.user_prompt], placeholders)
    history = [ConversationMessage(role=m.role, content=content) for m, content in zip(said, contents, strict=True)]
    return prompt, history


_INSERT_ATTEMPTS = 3
_CLAIM_ATTEMPTS = 3
CLAIM_RECORDED_WITHIN_SECONDS = RECORD_WITHIN_SECONDS + 0.5
_FIRST_PAUSE_SECONDS = 0.005
_LONGEST_PAUSE_SECONDS = 0.1


class KeyTaken(Exception):
    """Another record of the tenant holds the idempotency key."""


class EarlierErased(Exception):
    """The upgrade that the key stands for was erased: there is no result to give, and no new one to make."""


class AcceptedRecords(Protocol):
    async def insert(self, record: AcceptedRecord) -> None:
        """Stores the record durably. Raises KeyTaken when its tenant uses the idempotency key already."""

    async def find_by_key(self, tenant_id: str, key_hash: str) -> AcceptedRecord | None: ...

    async def find(self, tenant_id: str, upgrade_id: str) -> AcceptedRecord | None: ...

    async def release_key(self, record: AcceptedRecord) -> None:
        """Takes the idempotency key off a record, so that a new one can have it."""

    async def mark_told(self, upgrade_id: str) -> bool:
        """Notes that somebody was told of the record, so that it stays; False when it was taken back."""

    async def remove(self, upgrade_id: str) -> bool:
        """Takes a record back; False when somebody was told of it: then it stays."""


class TenantDocuments(Protocol):
    async def exist(self, tenant_id: str) -> bool:
        """Whether the tenant has documents; True when that cannot be found out."""


@dataclass(frozen=True)
class Acceptance:
    """The record that stands for a request, and whether an earlier request with the same key made it.

    `user_prompt` is the prompt as its client sent it, when that is at hand.
    """

    record: AcceptedRecord
    task: UpgradeTask
    replayed: bool
    rate: Rate | None = None
    user_prompt: str | None = None


class AcceptUpgrade:
    """The use case. `deadline_seconds` is the time an upgrade has, `replica_id` names the gateway that waits for it."""

    def __init__(
        self,
        *,
        records: AcceptedRecords,
        admissions: Admissions,
        documents: TenantDocuments,
        vault: Vault,
        limits: AnswerLimits,
        deadline_seconds: float,
        replica_id: str,
        clock: Callable[[], datetime] = now_utc,
    ) -> None:
        self._records = records
        self._admissions = admissions
        self._documents = documents
        self._vault = vault
        self._limits = limits
        self._deadline = timedelta(seconds=deadline_seconds)
        self._replica_id = replica_id
        self._clock = clock

    async def __call__(
        self,
        caller: Caller,
        request: UpgradeRequest,
        *,
        idempotency_key: str | None = None,
        traceparent: str | None = None,
    ) -> Acceptance:
        """Records the upgrade once, also when the same key comes many times at once.

        Raises IdempotencyKeyReused, EarlierErased, KeyTaken, StorageUnavailable, and what admission raises; nothing is
        recorded then.
        """
        record, task = await self._prepare(caller, request, idempotency_key, traceparent)
        hold = self._hold(record)
        for _ in range(_CLAIM_ATTEMPTS):
            try:
                admission = await self._admissions.admit(hold)
            except ProblemError as refusal:
                # The claim may be lost with Redis. Who repeats an accepted request gets its upgrade, not a refusal.
                earlier = await self._earlier_of(record)
                if refusal.problem is UNAVAILABLE or earlier is None or not await self._stays(earlier):
                    raise
                self._restore_claim(hold, earlier)
                return _replay(earlier, record, None)
            if admission.claim is None:
                return await self._recorded(record, task, hold, admission, request.user_prompt)
            earlier = await self._claimed(record, admission.claim)
            if earlier is not None and await self._stays(earlier):
                return _replay(earlier, record, admission.rate)
            await self._admissions.forget(hold, admission.claim)
        raise KeyTaken

    async def _recorded(
        self, record: AcceptedRecord, task: UpgradeTask, hold: Hold, admission: Admission, user_prompt: str
    ) -> Acceptance:
        """The upgrade is admitted: it is recorded now, or its hold is given back."""
        earlier = await record_in_time(
            lambda: self._record(record),
            take_back=lambda: self._records.remove(record.upgrade_id),
            release=lambda: self._admissions.release(hold),
            until=admission.at + RECORD_WITHIN_SECONDS,
        )
        if earlier is None:
            return Acceptance(record, task, replayed=False, rate=admission.rate, user_prompt=user_prompt)
        self._restore_claim(hold, earlier)
        return _replay(earlier, record, admission.rate)

    def _restore_claim(self, hold: Hold, earlier: AcceptedRecord) -> None:
        """The claim was lost with Redis: the next ones with this key need not look for who has it."""
        claim = Claim(earlier.upgrade_id, earlier.body_hash or "")
        self._admissions.restore(hold, claim, earlier.created_at + IDEMPOTENCY_WINDOW - self._clock())

    async def _claimed(self, record: AcceptedRecord, claim: Claim) -> AcceptedRecord | None:
        """The record of who claimed the key; None when that request came to nothing, or its day is over."""
        until = time.monotonic() + CLAIM_RECORDED_WITHIN_SECONDS
        pause = _FIRST_PAUSE_SECONDS
        while True:
            earlier = await self._records.find(record.tenant_id, claim.upgrade_id)
            if earlier is not None:
                return None if self._is_over(earlier) else earlier
            # Who claimed the key after Redis was lost may itself be a repeat, and then records nothing.
            earlier = await self._earlier_of(record)
            if earlier is not None:
                return earlier
            if time.monotonic() > until:
                return None
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _stays(self, earlier: AcceptedRecord) -> bool:
        """Whether the record is there for good. One that came too late may be taken back, until somebody was told."""
        if earlier.told or earlier.published_on is not None or earlier.has_ended():
            return True
        return await self._records.mark_told(earlier.upgrade_id)

    async def _earlier_of(self, record: AcceptedRecord) -> AcceptedRecord | None:
        if record.key_hash is None:
            return None
        earlier = await self._records.find_by_key(record.tenant_id, record.key_hash)
        return None if earlier is None or self._is_over(earlier) else earlier

    def _is_over(self, earlier: AcceptedRecord) -> bool:
        """Whether the earlier request no longer has its key."""
        return earlier.key_hash is None or earlier.older_than(self._clock() - IDEMPOTENCY_WINDOW)

    def _hold(self, record: AcceptedRecord) -> Hold:
        assert record.hold is not None  # noqa: S101 -- every new record has one
        return Hold(
            tenant_id=record.tenant_id,
            upgrade_id=record.upgrade_id,
            period=record.period,
            size=HoldSize(record.hold.upgrades, record.hold.tokens, record.hold.embeddings),
            expires_at=record.hold.expires_at,
            subject=record.user_ref or record.credential_id,
            key_hash=record.key_hash,
            body_hash=record.body_hash,
        )

    async def _prepare(
        self, caller: Caller, request: UpgradeRequest, idempotency_key: str | None, traceparent: str | None
    ) -> tuple[AcceptedRecord, UpgradeTask]:
        itinerary = await self._itinerary(caller, request)
        placeholders = PlaceholderMap()
        prompt, history = await redacted(request, placeholders)
        upgrade_id, now = new_id(), self._clock()
        sealed = None
        if placeholders.counts():
            sealed = self._vault.seal(placeholders.to_json(), tenant_id=caller.tenant_id, subject_id=upgrade_id)
        task = TASK_MODEL[itinerary[0]](
            upgrade_id=upgrade_id,
            tenant_id=caller.tenant_id,
            user_ref=self._vault.user_ref(caller.tenant_id, request.user_id) if request.user_id else None,
            period=period_of(now),
            created_at=now,
            deadline=now + self._deadline,
            user_prompt=prompt,
            conversation_history=history,
            options=TaskOptions(**request.options.model_dump()),
            placeholder_counts=placeholders.counts(),
            sealed_pii=None if request.options.enable_pii_redaction else sealed,
            reply_to=self._replica_id,
            itinerary=itinerary,
        )
        shares = hold_of_stages(request, task, self._limits)
        size = sum_of_stages(shares)
        record = AcceptedRecord(
            upgrade_id=upgrade_id,
            tenant_id=caller.tenant_id,
            credential_id=caller.credential_id,
            user_ref=task.user_ref,
            key_hash=self._key_hash(caller, idempotency_key) if idempotency_key else None,
            body_hash=self._body_hash(caller, request) if idempotency_key else None,
            period=task.period,
            created_at=now,
            deadline=task.deadline,
            task=task.model_dump_json(by_alias=True),
            sealed_pii=sealed,
            traceparent=traceparent,
            hold=StoredHold(
                upgrades=size.upgrades,
                tokens=size.tokens,
                embeddings=size.embeddings,
                expires_at=task.deadline + WORK_ENDS_WITHIN,
                stages={
                    stage: StageHold(tokens=share.tokens, embeddings=share.embeddings)
                    for stage, share in shares.items()
                },
            ),
            open_since=now,
        )
        return record, task

    async def _itinerary(self, caller: Caller, request: UpgradeRequest) -> list[Stage]:
        stages = []
        messages = [message.content for message in request.conversation_history]
        if request.options.enable_summarization and not fits_the_rewrite(messages):
            stages.append(Stage.SUMMARIZER)
        if request.options.enable_rag and await self._documents.exist(caller.tenant_id):
            stages.append(Stage.RAG)
        return [*stages, Stage.UPGRADER]

    def _key_hash(self, caller: Caller, idempotency_key: str) -> str:
        # Clients put order numbers and worse into it: nobody who reads the store needs to see that.
        return self._vault.keyed_hash("idempotency-key", caller.tenant_id, idempotency_key)

    def _body_hash(self, caller: Caller, request: UpgradeRequest) -> str:
        canonical = request.model_dump_json(by_alias=True, exclude_unset=True)
        return self._vault.keyed_hash("upgrade-body", caller.tenant_id, canonical)

    async def _record(self, record: AcceptedRecord) -> AcceptedRecord | None:
        """Inserts the record, or gives the one that its idempotency key belongs to."""
        for _ in range(_INSERT_ATTEMPTS):
            try:
                await self._records.insert(record)
                return None
            except KeyTaken:
                assert record.key_hash is not None  # noqa: S101 -- only a key can be taken
                earlier = await self._records.find_by_key(record.tenant_id, record.key_hash)
            if earlier is None:
                continue
            if not self._is_over(earlier):
                if await self._stays(earlier):
                    return earlier
                continue
            await self._records.release_key(earlier)
        raise KeyTaken


def _replay(earlier: AcceptedRecord, record: AcceptedRecord, rate: Rate | None) -> Acceptance:
    if earlier.body_hash != record.body_hash:
        raise IdempotencyKeyReused
    if earlier.erased_at is not None:
        raise EarlierErased
    return Acceptance(earlier, earlier.first_task(), replayed=True, rate=rate)
