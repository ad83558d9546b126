"""Runs a stage of the pipeline once per upgrade, however often its message is delivered.

- Recorded, as one document under the upgrade's id, before anything is published: the stage's output and the usage
  events of its work. The first record of an upgrade stands, also when two processes work on it at once.
- Handed over: the upgrade with the recorded output goes to the inbox of the next stage, then the usage events are
  published. Only then does the handler return and the message's offset may be committed.
- Redelivered: the stage finds the record and repeats the hand-over, without doing its work again.
- Given up: the upgrade goes to the next stage all the same, marked with the reason, so that it still ends.
"""

import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from shared.contracts.contract import id_floor, now_utc
from shared.contracts.quota import SpentEvent, SpentEvents
from shared.contracts.topics import INBOX_OF, USAGE_RECORDED
from shared.contracts.upgrade_tasks import GivenUp, Stage, StageOutput, UpgradeTask
from shared.contracts.usage import UsageRecorded
from shared.messaging.cloudevents import Envelope
from shared.messaging.errors import Unprocessable
from shared.messaging.publish.outbox import Fact, FactOutbox
from shared.messaging.publish.producer import EventProducer
from shared.messaging.publish.progress import ProgressLog
from shared.service.keyed_lock import KeyedLock
from shared.service.problems import unavailable_response
from shared.storage.documents import StorageUnavailable

StageWork = Callable[[UpgradeTask], Awaitable[StageOutput]]


class RecordedStage:
    """Message handlers of one stage. `work` computes its output, and `outputs` keeps the records."""

    def __init__(
        self, *, stage: Stage, outputs: FactOutbox, producer: EventProducer, progress: ProgressLog, work: StageWork
    ) -> None:
        self._stage = stage
        self._outputs = outputs
        self._producer = producer
        self._progress = progress
        self._work = work
        # A message can be delivered again while its first delivery is in progress: the second one waits for the record.
        self._upgrade_lock = KeyedLock()

    async def handle(self, envelope: Envelope) -> None:
        """Returns when the next stage has the upgrade. Raises Transient when the store or the broker is unavailable."""
        task = self._task_of(envelope)
        async with self._upgrade_lock.hold(task.upgrade_id):
            record = await self._outputs.find(task.upgrade_id) or await self._work_and_record(task)
        # Usage is published last, since the client waits for the hand-over only.
        await self._hand_over(task, StageOutput.model_validate(record["content"]))
        await self._outputs.publish(record)

    async def give_up(self, envelope: Envelope, given_up: GivenUp) -> None:
        """Hands the upgrade over with `given_up` and with the recorded output, if there is one. Raises as `handle`."""
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
        """Returns the record that stands, which another process may have inserted first."""
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
        await self._producer.publish(INBOX_OF[following], task.upgrade_id, onward, subject=task.upgrade_id)

    def _task_of(self, envelope: Envelope) -> UpgradeTask:
        task = envelope.data
        if not isinstance(task, UpgradeTask) or task.next_stage() is not self._stage:
            raise Unprocessable(f"not addressed to {self._stage}")
        return task


def usage_facts(task: UpgradeTask, output: StageOutput) -> list[Fact]:
    """Returns one `usage.recorded.v1` event for each operation of a stage's output."""
    events = (UsageRecorded.for_task(task, usage, sequence, now_utc()) for sequence, usage in enumerate(output.usage))
    return [Fact(USAGE_RECORDED, task.tenant_id, event.event_id, event, task.upgrade_id) for event in events]


async def erase_output(outputs: FactOutbox, tenant_id: str, upgrade_id: str) -> bool:
    """Removes the content of a recorded output. Returns False when the tenant has no such record.

    The record itself stays, so that a redelivered message does not repeat the work. Raises StorageUnavailable.
    """
    gone: dict[str, Any] = {"content.summary": None, "content.chunks": [], "content.sealedPii": None}
    return await outputs.records.update_one({"_id": upgrade_id, "tenantId": tenant_id}, {"$set": gone}) > 0


async def expire_outputs(outputs: FactOutbox, recorded_before: datetime) -> int:
    """Deletes settled outputs of upgrades accepted before that time and returns how many. Raises StorageUnavailable."""
    return await outputs.records.delete_many(
        {"_id": {"$lt": id_floor(recorded_before)}, "unsettledSince": {"$exists": False}}
    )


def spent_route(outputs: FactOutbox) -> APIRouter:
    """`GET /internal/upgrades/{upgradeId}/spent?tenantId=`: the recorded usage, as SpentEvents."""
    router = APIRouter(prefix="/internal/upgrades")

    @router.get("/{upgrade_id}/spent")
    async def spent(upgrade_id: str, tenant_id: Annotated[str, Query(alias="tenantId")]) -> Response:
        try:
            record = await outputs.records.get(upgrade_id)
        except StorageUnavailable:
            return unavailable_response()
        known = record is not None and record["tenantId"] == tenant_id
        facts = record["facts"] if record is not None and known else []
        events = [_spent(fact["data"]) for fact in facts if fact["topic"] == USAGE_RECORDED.name]
        return Response(SpentEvents(events=events).to_json(), media_type="application/json")

    return router


def _spent(data: dict[str, Any]) -> SpentEvent:
    used = UsageRecorded.model_validate(data)
    return SpentEvent(event_id=used.event_id, tokens=used.tokens_in + used.tokens_out, embeddings=used.embeddings)
