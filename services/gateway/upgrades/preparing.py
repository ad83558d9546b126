"""Prepares an upgrade from a client's request: redacts the texts, chooses the stages, and sizes the hold."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from services.gateway.identity.caller import Caller
from services.gateway.quota.held_work import WORK_ENDS_WITHIN
from services.gateway.quota.holds import (
    AnswerLimits,
    Hold,
    HoldSize,
    UpgradeInput,
    larger_holds,
    stage_holds,
    sum_of_stages,
)
from services.gateway.upgrades.accepted_record import TASK_MODEL, AcceptedRecord, RecordedHold, StageShare
from shared.contracts.contract import new_id, period_of
from shared.contracts.token_bounds import fits_the_rewrite
from shared.contracts.upgrade_http import UpgradeRequest
from shared.contracts.upgrade_tasks import ConversationMessage, Stage, TaskOptions, UpgradeTask
from shared.privacy.placeholders import PlaceholderMap
from shared.privacy.redaction import redact_all
from shared.privacy.sealing import Vault

_REDACTED_IN_THREAD_CHARACTERS = 20_000


class DocumentLookup(Protocol):
    async def exist(self, tenant_id: str) -> bool:
        """Whether the tenant has documents; True when that is unknown."""


@dataclass(frozen=True)
class PreparedUpgrade:
    """The record of a new upgrade, the task that its record contains, and the hold that it needs."""

    record: AcceptedRecord
    task: UpgradeTask
    hold: Hold


class PrepareUpgrade:
    """`deadline` is the time an upgrade has; `replica_id` names the gateway replica that gets the reply."""

    def __init__(
        self,
        *,
        documents: DocumentLookup,
        vault: Vault,
        limits: AnswerLimits,
        deadline: timedelta,
        replica_id: str,
        clock: Callable[[], datetime],
    ) -> None:
        self._documents = documents
        self._vault = vault
        self._limits = limits
        self._deadline = deadline
        self._replica_id = replica_id
        self._clock = clock

    async def __call__(
        self, caller: Caller, request: UpgradeRequest, idempotency_key: str | None, traceparent: str | None
    ) -> PreparedUpgrade:
        """A new upgrade with its own id, of which nothing is stored yet."""
        itinerary = await self._itinerary(caller, request)
        placeholders = PlaceholderMap()
        prompt, history = await _redacted(request, placeholders)
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
        shares = _holds_of_stages(request, task, self._limits)
        hold = Hold(
            tenant_id=caller.tenant_id,
            hold_id=upgrade_id,
            period=task.period,
            size=sum_of_stages(shares),
            expires_at=task.deadline + WORK_ENDS_WITHIN,
            subject=task.user_ref or caller.credential_id,
            key_hash=self._key_hash(caller, idempotency_key) if idempotency_key else None,
            body_hash=self._body_hash(caller, request) if idempotency_key else None,
        )
        record = AcceptedRecord(
            upgrade_id=upgrade_id,
            tenant_id=caller.tenant_id,
            credential_id=caller.credential_id,
            user_ref=task.user_ref,
            key_hash=hold.key_hash,
            body_hash=hold.body_hash,
            period=task.period,
            created_at=now,
            deadline=task.deadline,
            task=task.model_dump_json(by_alias=True),
            sealed_pii=sealed,
            traceparent=traceparent,
            hold=RecordedHold(
                upgrades=hold.size.upgrades,
                tokens=hold.size.tokens,
                embeddings=hold.size.embeddings,
                expires_at=hold.expires_at,
                stages={
                    stage: StageShare(tokens=share.tokens, embeddings=share.embeddings)
                    for stage, share in shares.items()
                },
            ),
            open_since=now,
        )
        return PreparedUpgrade(record, task, hold)

    async def _itinerary(self, caller: Caller, request: UpgradeRequest) -> list[Stage]:
        stages = []
        messages = [message.content for message in request.conversation_history]
        if request.options.enable_summarization and not fits_the_rewrite(messages):
            stages.append(Stage.SUMMARIZER)
        if request.options.enable_rag and await self._documents.exist(caller.tenant_id):
            stages.append(Stage.RAG)
        return [*stages, Stage.UPGRADER]

    def _key_hash(self, caller: Caller, idempotency_key: str) -> str:
        # Hashed because clients put order numbers and other identifiers into their keys.
        return self._vault.keyed_hash("idempotency-key", caller.tenant_id, idempotency_key)

    def _body_hash(self, caller: Caller, request: UpgradeRequest) -> str:
        canonical = request.model_dump_json(by_alias=True, exclude_unset=True)
        return self._vault.keyed_hash("upgrade-body", caller.tenant_id, canonical)


async def _redacted(request: UpgradeRequest, placeholders: PlaceholderMap) -> tuple[str, list[ConversationMessage]]:
    """Prompt and conversation with placeholders for personal values, which are added to `placeholders`."""
    characters = len(request.user_prompt) + sum(len(message.content) for message in request.conversation_history)
    if characters > _REDACTED_IN_THREAD_CHARACTERS:
        return await asyncio.to_thread(_redact, request, placeholders)
    return _redact(request, placeholders)


def _redact(request: UpgradeRequest, placeholders: PlaceholderMap) -> tuple[str, list[ConversationMessage]]:
    # History first: in a growing conversation, earlier messages keep their placeholders and so their cached summary.
    # All texts together: what a later text reveals to be a secret is redacted in the earlier texts too.
    said = request.conversation_history
    *contents, prompt = redact_all([*(message.content for message in said), request.user_prompt], placeholders)
    history = [ConversationMessage(role=m.role, content=content) for m, content in zip(said, contents, strict=True)]
    return prompt, history


def _holds_of_stages(request: UpgradeRequest, task: UpgradeTask, limits: AnswerLimits) -> dict[Stage, HoldSize]:
    """What each stage holds. Where redaction is off, the model reads the values that stand behind placeholders."""
    redacted_texts = [message.content for message in task.conversation_history]
    chunks = request.options.rag_top_k
    shares = stage_holds(UpgradeInput(task.itinerary, task.user_prompt, redacted_texts, chunks), limits)
    if request.options.enable_pii_redaction or not task.placeholder_counts:
        return shares
    texts = [message.content for message in request.conversation_history]
    return larger_holds(shares, stage_holds(UpgradeInput(task.itinerary, request.user_prompt, texts, chunks), limits))
