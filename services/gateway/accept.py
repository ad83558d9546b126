"""Accepts an upgrade: what its client sent becomes a redacted message and one record that decides everything later."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from services.gateway.accepted_record import TASK_MODEL, AcceptedRecord
from services.gateway.admission import Admission, Hold
from services.gateway.caller import Caller
from shared.contracts.contract import now_utc, period_of
from shared.contracts.ids import new_id
from shared.contracts.upgrade_http import HistoryMessage, UpgradeRequest
from shared.contracts.upgrade_tasks import ConversationMessage, Stage, TaskOptions, UpgradeTask
from shared.privacy.redaction import PlaceholderMap, redact
from shared.privacy.sealing import Vault

IDEMPOTENCY_WINDOW = timedelta(hours=24)
_REDACTED_IN_THREAD_CHARACTERS = 20_000
_INSERT_ATTEMPTS = 3


class KeyTaken(Exception):
    """Another record of the tenant holds the idempotency key."""


class IdempotencyKeyReused(Exception):
    """The key came with another body than the first time."""


class AcceptedRecords(Protocol):
    async def insert(self, record: AcceptedRecord) -> None:
        """Stores the record durably. Raises KeyTaken when its tenant uses the idempotency key already."""

    async def find_by_key(self, tenant_id: str, idempotency_key: str) -> AcceptedRecord | None: ...

    async def release_key(self, record: AcceptedRecord) -> None:
        """Takes the idempotency key off a record, so that a new one can have it."""


class TenantDocuments(Protocol):
    async def exist(self, tenant_id: str) -> bool:
        """Whether the tenant has documents; True when that cannot be found out."""


@dataclass(frozen=True)
class Acceptance:
    """The record that stands for a request, and whether an earlier request with the same key made it."""

    record: AcceptedRecord
    task: UpgradeTask
    replayed: bool


class AcceptUpgrade:
    """The use case. `deadline_seconds` is the time an upgrade has, `replica_id` names the gateway that waits for it."""

    def __init__(
        self,
        *,
        records: AcceptedRecords,
        admission: Admission,
        documents: TenantDocuments,
        vault: Vault,
        deadline_seconds: float,
        replica_id: str,
        clock: Callable[[], datetime] = now_utc,
    ) -> None:
        self._records = records
        self._admission = admission
        self._documents = documents
        self._vault = vault
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

        Raises IdempotencyKeyReused, and what admission raises; nothing is recorded then.
        """
        record, task = await self._prepare(caller, request, idempotency_key, traceparent)
        hold = Hold(
            upgrade_id=record.upgrade_id,
            period=record.period,
            itinerary=tuple(task.itinerary),
            input_characters=_characters(request),
            expires_at=record.deadline,
            user_ref=record.user_ref,
            idempotency_key=idempotency_key,
        )
        await self._admission.admit(caller, hold)
        try:
            earlier = await self._record(record)
        except BaseException:
            await self._admission.release(caller, hold)
            raise
        if earlier is None:
            return Acceptance(record, task, replayed=False)
        await self._admission.release(caller, hold)
        if earlier.body_hash != record.body_hash:
            raise IdempotencyKeyReused
        return Acceptance(earlier, earlier.first_task(), replayed=True)

    async def _prepare(
        self, caller: Caller, request: UpgradeRequest, idempotency_key: str | None, traceparent: str | None
    ) -> tuple[AcceptedRecord, UpgradeTask]:
        itinerary = await self._itinerary(caller, request)
        placeholders = PlaceholderMap()
        if _characters(request) > _REDACTED_IN_THREAD_CHARACTERS:
            prompt, history = await asyncio.to_thread(_redact, request, placeholders)
        else:
            prompt, history = _redact(request, placeholders)
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
        record = AcceptedRecord(
            upgrade_id=upgrade_id,
            tenant_id=caller.tenant_id,
            credential_id=caller.credential_id,
            user_ref=task.user_ref,
            idempotency_key=idempotency_key,
            body_hash=self._body_hash(caller, request) if idempotency_key else None,
            period=task.period,
            created_at=now,
            deadline=task.deadline,
            task=task.model_dump_json(by_alias=True),
            sealed_pii=sealed,
            traceparent=traceparent,
            open_since=now,
        )
        return record, task

    async def _itinerary(self, caller: Caller, request: UpgradeRequest) -> list[Stage]:
        stages = []
        if request.conversation_history and request.options.enable_summarization:
            stages.append(Stage.SUMMARIZER)
        if request.options.enable_rag and await self._documents.exist(caller.tenant_id):
            stages.append(Stage.RAG)
        return [*stages, Stage.UPGRADER]

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
                assert record.idempotency_key is not None  # noqa: S101 -- only a key can be taken
                earlier = await self._records.find_by_key(record.tenant_id, record.idempotency_key)
            if earlier is None:
                continue
            if not earlier.older_than(self._clock() - IDEMPOTENCY_WINDOW):
                return earlier
            await self._records.release_key(earlier)
        raise KeyTaken


def _characters(request: UpgradeRequest) -> int:
    return len(request.user_prompt) + sum(len(message.content) for message in request.conversation_history)


def _redact(request: UpgradeRequest, placeholders: PlaceholderMap) -> tuple[str, list[ConversationMessage]]:
    # History first: as a conversation grows its earlier messages keep their placeholders, and so their cached summary.
    history = [_redact_message(message, placeholders) for message in request.conversation_history]
    return redact(request.user_prompt, placeholders), history


def _redact_message(message: HistoryMessage, placeholders: PlaceholderMap) -> ConversationMessage:
    return ConversationMessage(role=message.role, content=redact(message.content, placeholders))
