"""A stage that does its work once per upgrade, however often its message is delivered."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from shared.contracts.contract import id_floor, now_utc
from shared.contracts.problems import UNAVAILABLE
from shared.contracts.quota import SpentEvent, SpentEvents
from shared.contracts.topics import INBOX_OF, USAGE_RECORDED
from shared.contracts.upgrade_tasks import GivenUp, Stage, StageOutput, UpgradeTask
from shared.contracts.usage import UsageRecorded
from shared.messaging.cloudevents import Envelope
from shared.messaging.errors import Unprocessable
from shared.messaging.publish.outbox import Fact, FactOutbox
from shared.messaging.publish.producer import EventProducer
from shared.messaging.publish.progress import ProgressLog
from shared.service.problems import problem_response
from shared.storage.documents import StorageUnavailable


class OneAtATime:
    """A lock per key, kept only while somebody holds it or waits for it.

    A message can be delivered again while its first delivery is still at work: the second waits here, and finds what
    the first has recorded.
    """

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    def __len__(self) -> int:
        return len(self._locks)

    @asynccontextmanager
    async def on(self, key: str) -> AsyncIterator[None]:
        """Waits until nobody else of this process is at work on `key`."""
        lock, users = self._locks.get(key) or (asyncio.Lock(), 0)
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            users = self._locks[key][1] - 1
            if users:
                self._locks[key] = (lock, users)
            else:
                del self._locks[key]


StageWork = Callable[[UpgradeTask], Awaitable[StageOutput]]


def usage_facts(task: UpgradeTask, output: StageOutput) -> list[Fact]:
    """One `usage.recorded.v1` for each operation of a stage's output."""
    events = (UsageRecorded.for_task(task, usage, sequence, now_utc()) for sequence, usage in enumerate(output.usage))
    return [Fact(USAGE_RECORDED, task.tenant_id, event.event_id, event, task.upgrade_id) for event in events]


class RecordedStage:
    """Runs `work` for an upgrade, records its output with the usage it owes, and hands the upgrade to the next stage.

    The recorded output decides: a message that comes again, here or in another process, repeats it and calls no model.
    """

    def __init__(
        self, *, stage: Stage, outputs: FactOutbox, producer: EventProducer, progress: ProgressLog, work: StageWork
    ) -> None:
        self._stage = stage
        self._outputs = outputs
        self._producer = producer
        self._progress = progress
        self._work = work
        self._at_work = OneAtATime()

    async def handle(self, envelope: Envelope) -> None:
        """Returns when the next inbox has the upgrade. Raises Transient when store or broker are out."""
        task = self._task_of(envelope)
        async with self._at_work.on(task.upgrade_id):
            record = await self._outputs.find(task.upgrade_id) or await self._work_and_record(task)
        output = StageOutput.model_validate(record["content"])
        # The hand-over alone first: the client waits for it, and for nothing that the facts need.
        await self._hand_over(task, output)
        await self._outputs.publish(record)

    async def give_up(self, envelope: Envelope, given_up: GivenUp) -> None:
        """Hands the upgrade on, marked, so that it still ends. Repeats the recorded output where there is one."""
        task = self._task_of(envelope)
        record = await self._outputs.find(task.upgrade_id)
        if record is not None:
            await self._outputs.publish(record)
            output = StageOutput.model_validate(record["content"]).model_copy(update={"given_up": given_up})
        else:
            output = StageOutput(stage=self._stage, given_up=given_up)
            await self._progress.stage(task, self._stage, "skipped", 0)
        await self._hand_over(task, output)

    async def _work_and_record(self, task: UpgradeTask) -> dict[str, Any]:
        await self._progress.stage(task, self._stage, "started")
        started = time.monotonic()
        output = await self._work(task)
        latency_ms = round((time.monotonic() - started) * 1000)
        output = output.model_copy(update={"latency_ms": latency_ms})
        record, _ = await self._outputs.record(
            task.upgrade_id, task.tenant_id, output.to_document(), usage_facts(task, output)
        )
        await self._progress.stage(task, self._stage, "skipped" if output.given_up else "finished", latency_ms)
        return record

    async def _hand_over(self, task: UpgradeTask, output: StageOutput) -> None:
        onward = task.advanced(output)
        following = onward.next_stage()
        if following is None:
            raise Unprocessable(f"the itinerary ends at {self._stage}, which does not end upgrades")
        inbox = INBOX_OF[following]
        await self._producer.publish(inbox, task.upgrade_id, onward, subject=task.upgrade_id)

    def _task_of(self, envelope: Envelope) -> UpgradeTask:
        task = envelope.data
        if not isinstance(task, UpgradeTask) or task.next_stage() is not self._stage:
            raise Unprocessable(f"not addressed to {self._stage}")
        return task


async def erase_output(outputs: FactOutbox, tenant_id: str, upgrade_id: str) -> bool:
    """Takes the content out of a recorded output; False when the tenant has none of that upgrade.

    The record stays, with what was used: a message that comes again still calls no model.
    """
    gone: dict[str, Any] = {"content.summary": None, "content.chunks": [], "content.sealedPii": None}
    return await outputs.records.update_one({"_id": upgrade_id, "tenantId": tenant_id}, {"$set": gone}) > 0


async def expire_outputs(outputs: FactOutbox, recorded_before: datetime) -> int:
    """Deletes settled outputs of upgrades accepted before that moment. Raises StorageUnavailable."""
    return await outputs.records.delete_many(
        {"_id": {"$lt": id_floor(recorded_before)}, "unsettledSince": {"$exists": False}}
    )


def spent_route(outputs: FactOutbox) -> APIRouter:
    """`GET /internal/upgrades/{upgradeId}/spent?tenantId=`: SpentEvents, none for what it has no output of."""
    router = APIRouter(prefix="/internal/upgrades")

    @router.get("/{upgrade_id}/spent")
    async def spent(upgrade_id: str, tenant_id: Annotated[str, Query(alias="tenantId")]) -> Response:
        try:
            record = await outputs.records.get(upgrade_id)
        except StorageUnavailable:
            return problem_response(UNAVAILABLE, headers={"Retry-After": "2"})
        known = record is not None and record["tenantId"] == tenant_id
        facts = record["facts"] if record is not None and known else []
        events = [_spent(fact["data"]) for fact in facts if fact["topic"] == USAGE_RECORDED.name]
        return Response(SpentEvents(events=events).to_json(), media_type="application/json")

    return router


def _spent(data: dict[str, Any]) -> SpentEvent:
    used = UsageRecorded.model_validate(data)
    return SpentEvent(event_id=used.event_id, tokens=used.tokens_in + used.tokens_out, embeddings=used.embeddings)
