"""Stores the result of every ended upgrade, and serves results to the gateway over internal HTTP.

There is one record per upgrade id. The first result written is final: later attempts read it back.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, HTTPException, Query, Response

from services.upgrader.rewriting.rewrite import COMPONENT
from shared.contracts.contract import derived_id, format_utc
from shared.contracts.internal_http import ResultLookup, ResultPage
from shared.contracts.topics import COMPLETED
from shared.contracts.upgrade_results import UpgradeCompleted, UpgradeResult, UpgradeStatus
from shared.contracts.upgrade_tasks import Stage, StageOutput, UpgradeTask
from shared.messaging.errors import Transient
from shared.messaging.publish.outbox import Fact, FactOutbox
from shared.privacy.placeholders import placeholders_in
from shared.service.recorded_stage import usage_facts
from shared.storage.documents import CollectionSpec, Index, StorageUnavailable

RESULTS = CollectionSpec(
    name="results",
    indexes=(
        Index(fields=("unsettledSince",), only_when_present="unsettledSince"),
        Index(fields=("tenantId", "_id")),
        Index(fields=("createdAt",)),
        Index(fields=("content.questionKey", "createdAt"), only_when_present="content.questionKey"),
    ),
)
_ERASED = "[erased]"
_MAX_CANDIDATES = 20
_MAX_LOOKUP = 500


@dataclass(frozen=True)
class RecordedEnd:
    """The final result of an upgrade, and the outbox record that holds its facts."""

    result: UpgradeResult
    record: dict[str, Any]


@dataclass(frozen=True)
class CachedAnswer:
    """An earlier answer to the same question."""

    result: UpgradeResult


@dataclass(frozen=True)
class Question:
    """Identity of a question: equal keys are the same question of one tenant. `documents` is a hash of its chunks."""

    key: str
    documents: str


class Results:
    """Results by upgrade id, recorded in an outbox together with the facts that follow from them."""

    def __init__(self, outbox: FactOutbox) -> None:
        self._outbox = outbox

    async def find(self, upgrade_id: str) -> UpgradeResult | None:
        """The result of an upgrade of any tenant, or None. Raises Transient when the store is down."""
        end = await self.find_end(upgrade_id)
        return end.result if end else None

    async def find_end(self, upgrade_id: str) -> RecordedEnd | None:
        """The recorded end of an upgrade of any tenant, or None. Raises Transient when the store is down."""
        record = await self._outbox.find(upgrade_id)
        return RecordedEnd(UpgradeResult.model_validate(record["content"]), record) if record else None

    async def end(self, task: UpgradeTask, result: UpgradeResult) -> RecordedEnd:
        """Records `result` unless the upgrade has ended already. Returns the recorded end, which may be another one.

        Raises Transient when the store is down.
        """
        key, completed = completed_fact(result)
        facts = [
            Fact(COMPLETED, key, completed_event_id(result.upgrade_id), completed, result.upgrade_id),
            *usage_facts(task, own_usage(result)),
        ]
        content = result.to_document()
        if result.status is UpgradeStatus.UPGRADED and (question := question_of(task, result)):
            content |= {"questionKey": question.key, "questionDocuments": question.documents}
        record, ours = await self._outbox.record(result.upgrade_id, result.tenant_id, content, facts)
        return RecordedEnd(result if ours else UpgradeResult.model_validate(record["content"]), record)

    async def cached_answer(self, task: UpgradeTask, not_before: datetime) -> CachedAnswer | None:
        """The tenant's newest reusable answer to the same question after `not_before`, or None. Raises Transient.

        If retrieval failed, the task's documents are not known, and only an answer without documents is returned.
        """
        question = question_of(task, None)
        if question is None:
            return None
        where = {"content.questionKey": question.key, "createdAt": {"$gt": format_utc(not_before)}}
        try:
            found = await self._outbox.records.find(where, sort=[("createdAt", -1)], limit=_MAX_CANDIDATES)
        except StorageUnavailable as error:
            raise Transient(f"storage: {error}") from error
        for record in found:
            if record["tenantId"] == task.tenant_id and record["content"]["questionDocuments"] == question.documents:
                return CachedAnswer(UpgradeResult.model_validate(record["content"]))
        return None

    async def publish_facts(self, end: RecordedEnd) -> None:
        """Publishes the facts of an end unless they are settled. The outbox sweep retries what fails here."""
        await self._outbox.publish(end.record)

    async def among(self, upgrade_ids: Sequence[str]) -> list[UpgradeResult]:
        """The results of those upgrades that have ended, in the order of `upgrade_ids`."""
        found = {record["_id"]: record for record in await self._outbox.records.get_many(list(upgrade_ids))}
        return [UpgradeResult.model_validate(found[i]["content"]) for i in upgrade_ids if i in found]

    async def of_tenant(
        self, tenant_id: str, *, status: str | None, user_ref: str | None, before: str | None, limit: int
    ) -> list[UpgradeResult]:
        """Up to `limit` results of a tenant, newest first, older than the upgrade id `before` if given."""
        where: dict[str, Any] = {"tenantId": tenant_id}
        if status:
            where["content.status"] = status
        if user_ref:
            where["content.userRef"] = user_ref
        if before:
            where["_id"] = {"$lt": before}
        records = await self._outbox.records.find(where, sort=[("_id", -1)], limit=limit)
        return [UpgradeResult.model_validate(record["content"]) for record in records]

    async def erase(self, tenant_id: str, upgrade_id: str) -> bool:
        """Removes the texts of a result, and keeps its status and usage. False when the tenant has no such result.

        The texts also leave the recorded `upgrades.completed.v1`, in case it is published again.
        """
        record = await self._outbox.records.get(upgrade_id)
        if record is None or record["tenantId"] != tenant_id:
            return False
        gone: dict[str, Any] = {
            "facts": [_without_content(fact) for fact in record["facts"]],
            "content.userPrompt": _ERASED,
            "content.upgradedPrompt": None,
            "content.reasoning": "",
            "content.missingQuestions": [],
            "content.citations": [],
            "content.sealedPii": [],
        }
        changed = await self._outbox.records.update_one(
            {"_id": upgrade_id, "tenantId": tenant_id},
            {"$set": gone, "$unset": {"content.questionKey": "", "content.questionDocuments": ""}},
        )
        return changed > 0

    async def expire(self, created_before: datetime) -> int:
        """Deletes settled results recorded before that time. Returns how many."""
        return await self._outbox.records.delete_many(
            {"createdAt": {"$lt": format_utc(created_before)}, "unsettledSince": {"$exists": False}}
        )


def completed_event_id(upgrade_id: str) -> str:
    """The id of the one `upgrades.completed.v1` of an upgrade."""
    return derived_id(upgrade_id, "completed")


def completed_fact(result: UpgradeResult) -> tuple[str, UpgradeCompleted]:
    """The key and the data of the `upgrades.completed.v1` event of a result."""
    assert COMPLETED.key == "tenantId"  # noqa: S101 -- the registry defines the key
    return result.tenant_id, UpgradeCompleted.of(result)


def own_usage(result: UpgradeResult) -> StageOutput:
    """The part of a result's usage that the upgrader reports; earlier stages report their own."""
    return StageOutput(stage=Stage.UPGRADER, usage=[item for item in result.usage if item.component == COMPONENT])


def question_of(task: UpgradeTask, answer: UpgradeResult | None) -> Question | None:
    """The question of an upgrade, or None if its answer must not be reused for another upgrade.

    Texts are compared with their placeholders, which each upgrade numbers from 1: the values may differ, and a reused
    answer is restored with the values of the upgrade that reuses it. So an answer with placeholders from documents, or
    of a model that saw the values, is not reused.
    """
    if not task.options.enable_pii_redaction:
        return None
    asked = [task.user_prompt, *(message.content for message in task.conversation_history)]
    if answer is not None and not set(placeholders_in(answer.upgraded_prompt or "")) <= set(placeholders_in(asked)):
        return None
    rag = task.output_of(Stage.RAG)
    chunks = sorted(chunk.chunk_id for chunk in rag.chunks) if rag else []
    said = [[message.role, message.content] for message in task.conversation_history]
    options = task.options.to_document()
    parts = orjson.dumps([task.tenant_id, task.user_prompt, said, options], option=orjson.OPT_SORT_KEYS)
    return Question(hashlib.sha256(parts).hexdigest(), hashlib.sha256("\n".join(chunks).encode()).hexdigest())


def result_routes(results: Results) -> APIRouter:
    """The routes under `/internal/upgrades`. Reading, listing and erasing are limited to the tenant in the request."""
    router = APIRouter(prefix="/internal/upgrades")

    @router.get("/{upgrade_id}")
    async def read(upgrade_id: str, tenant_id: Annotated[str, Query(alias="tenantId")]) -> Response:
        result = await results.find(upgrade_id)
        if result is None or result.tenant_id != tenant_id:
            raise HTTPException(404)
        return _json(result.to_json())

    @router.post("/lookup")
    async def lookup(question: ResultLookup) -> Response:
        return _json(_page(await results.among(question.upgrade_ids[:_MAX_LOOKUP])))

    @router.get("")
    async def page(
        tenant_id: Annotated[str, Query(alias="tenantId")],
        status: str | None = None,
        user_ref: Annotated[str | None, Query(alias="userRef")] = None,
        before: str | None = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> Response:
        found = await results.of_tenant(tenant_id, status=status, user_ref=user_ref, before=before, limit=limit)
        return _json(_page(found))

    @router.delete("/{upgrade_id}")
    async def erase(upgrade_id: str, tenant_id: Annotated[str, Query(alias="tenantId")]) -> Response:
        if not await results.erase(tenant_id, upgrade_id):
            raise HTTPException(404)
        return Response(status_code=204)

    return router


def _without_content(fact: dict[str, Any]) -> dict[str, Any]:
    if fact["topic"] != COMPLETED.name:
        return fact
    gone: dict[str, Any] = {"userPrompt": _ERASED, "upgradedPrompt": None, "reasoning": "", "missingQuestions": []}
    return {**fact, "data": {**fact["data"], **gone, "citations": []}}


def _page(found: list[UpgradeResult]) -> bytes:
    return ResultPage(items=found).to_json()


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
