"""Kafka in: an upgrade whose prompt is to be rewritten, or which is to be ended as well as it still can be."""

import asyncio

from services.upgrader.end_upgrade import original_after_failure, original_after_give_up, upgraded
from services.upgrader.language import detect_language
from services.upgrader.results import RecordedEnd, Results
from services.upgrader.rewrite import RewriteFailed, RewriteModel, RewriteRequest, request_for, rewrite
from shared.contracts.contract import now_utc
from shared.contracts.upgrade_results import UpgradeResult
from shared.contracts.upgrade_tasks import GivenUp, GiveUpReason, Stage, UpgradeTask
from shared.messaging.cloudevents import Envelope
from shared.messaging.errors import Unprocessable
from shared.messaging.one_at_a_time import OneAtATime
from shared.messaging.progress import ProgressLog

_ENDS_AT_ONCE = (GiveUpReason.DEADLINE, GiveUpReason.EXPIRED)
# Model calls that end together would begin together again, and all would wait for the last of them each time.
_AT_WORK_BESIDE_THE_MODEL = 32


class EndingStage:
    """The last stage: records the one end of each upgrade and tells whoever waits for it."""

    def __init__(self, results: Results, model: RewriteModel, progress: ProgressLog) -> None:
        self._results = results
        self._model = model
        self._progress = progress
        self._at_work = OneAtATime()
        self._turns = asyncio.Semaphore(_AT_WORK_BESIDE_THE_MODEL)

    async def handle(self, envelope: Envelope) -> None:
        """Returns when the end is recorded and told. Raises Transient when store or broker are out."""
        task = _task_of(envelope)
        if task.given_up and task.given_up.reason in _ENDS_AT_ONCE:
            await self.give_up(envelope, task.given_up)
            return
        async with self._at_work.on(task.upgrade_id):
            async with self._turns:
                if end := await self._results.find_end(task.upgrade_id):
                    await self._tell(task, end)
                    return
                await self._progress.stage(task, Stage.UPGRADER, "started")
                request = request_for(task)
            result = await self._rewritten(request)
            async with self._turns:
                end = await self._results.end(task, result)
                latency_ms = end.result.usage[-1].latency_ms if end.result.usage else 0
                await self._progress.stage(task, Stage.UPGRADER, "finished", latency_ms)
                await self._tell(task, end)

    async def give_up(self, envelope: Envelope, given_up: GivenUp) -> None:
        """Ends the upgrade without the model, unless it has ended already."""
        task = _task_of(envelope)
        end = await self._results.find_end(task.upgrade_id)
        if end is None:
            language = detect_language(task.user_prompt, task.conversation_history)
            original = original_after_give_up(task, given_up, language, now_utc())
            end = await self._results.end(task, original)
            await self._progress.stage(task, Stage.UPGRADER, "skipped", 0)
        await self._tell(task, end)

    async def _rewritten(self, request: RewriteRequest) -> UpgradeResult:
        try:
            made = await rewrite(request, self._model)
        except RewriteFailed as failure:
            return original_after_failure(request, failure, now_utc())
        return upgraded(request, made, now_utc())

    async def _tell(self, task: UpgradeTask, end: RecordedEnd) -> None:
        await self._progress.completed(task, end.result)
        await asyncio.sleep(0)  # the reply goes first
        await self._results.publish_facts(end)


def _task_of(envelope: Envelope) -> UpgradeTask:
    if not isinstance(envelope.data, UpgradeTask):
        raise Unprocessable("not an upgrade")
    return envelope.data
