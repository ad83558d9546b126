"""Kafka in: an upgrade whose prompt is to be rewritten, or which is to be ended as well as it still can be."""

from services.upgrader.end_upgrade import original_after_failure, original_after_give_up, upgraded
from services.upgrader.language import detect_language
from services.upgrader.results import Results
from services.upgrader.rewrite import RewriteFailed, RewriteModel, request_for, rewrite
from shared.contracts.contract import now_utc
from shared.contracts.upgrade_results import UpgradeResult
from shared.contracts.upgrade_tasks import GivenUp, GiveUpReason, Stage, UpgradeTask
from shared.messaging.cloudevents import Envelope
from shared.messaging.errors import Unprocessable
from shared.messaging.one_at_a_time import OneAtATime
from shared.messaging.progress import ProgressLog

_ENDS_AT_ONCE = (GiveUpReason.DEADLINE, GiveUpReason.EXPIRED)


class EndingStage:
    """The last stage: records the one end of each upgrade and tells whoever waits for it."""

    def __init__(self, results: Results, model: RewriteModel, progress: ProgressLog) -> None:
        self._results = results
        self._model = model
        self._progress = progress
        self._at_work = OneAtATime()

    async def handle(self, envelope: Envelope) -> None:
        """Returns when the end is recorded. Raises Transient when store or broker are out."""
        task = _task_of(envelope)
        if task.given_up and task.given_up.reason in _ENDS_AT_ONCE:
            await self.give_up(envelope, task.given_up)
            return
        async with self._at_work.on(task.upgrade_id):
            result = await self._results.find(task.upgrade_id) or await self._rewrite_and_record(task)
        await self._tell(task, result)

    async def give_up(self, envelope: Envelope, given_up: GivenUp) -> None:
        """Ends the upgrade without the model, unless it has ended already."""
        task = _task_of(envelope)
        result = await self._results.find(task.upgrade_id)
        if result is None:
            language = detect_language(task.user_prompt, task.conversation_history)
            end = original_after_give_up(task, given_up, language, now_utc())
            result = await self._results.end(task, end)
            await self._progress.stage(task, Stage.UPGRADER, "skipped", 0)
        await self._tell(task, result)

    async def _rewrite_and_record(self, task: UpgradeTask) -> UpgradeResult:
        await self._progress.stage(task, Stage.UPGRADER, "started")
        result = await self._results.end(task, await self._rewritten(task))
        latency_ms = result.usage[-1].latency_ms if result.usage else 0
        await self._progress.stage(task, Stage.UPGRADER, "finished", latency_ms)
        return result

    async def _rewritten(self, task: UpgradeTask) -> UpgradeResult:
        request = request_for(task)
        try:
            made = await rewrite(request, self._model)
        except RewriteFailed as failure:
            return original_after_failure(request, failure, now_utc())
        return upgraded(request, made, now_utc())

    async def _tell(self, task: UpgradeTask, result: UpgradeResult) -> None:
        await self._progress.completed(task, result)
        await self._results.publish_facts(task.upgrade_id)


def _task_of(envelope: Envelope) -> UpgradeTask:
    if not isinstance(envelope.data, UpgradeTask):
        raise Unprocessable("not an upgrade")
    return envelope.data
