"""Ends upgrades: every way in which an upgrade can end, and the inbox they come from."""

import asyncio
from datetime import datetime

from services.upgrader.reading.language import detect_language
from services.upgrader.results import RecordedEnd, Results
from services.upgrader.rewriting.rewrite import (
    COMPONENT,
    Rewrite,
    RewriteFailed,
    RewriteModel,
    RewriteRequest,
    request_for,
    rewrite,
)
from shared.contracts.contract import now_utc
from shared.contracts.problems import WarningCode
from shared.contracts.quota import SpentEvent
from shared.contracts.upgrade_results import UpgradeError, UpgradeResult, UpgradeStatus
from shared.contracts.upgrade_tasks import (
    ComponentUsage,
    GivenUp,
    GiveUpReason,
    SealedText,
    Stage,
    UpgradeTask,
    UpgradeWarning,
)
from shared.contracts.usage import UsageRecorded
from shared.messaging.cloudevents import Envelope
from shared.messaging.errors import Unprocessable
from shared.messaging.publish.progress import ProgressLog
from shared.service.recorded_stage import OneAtATime
from shared.service.repair_holds import RepairHolds

_WARNING_OF_REASON = {
    GiveUpReason.DEADLINE: WarningCode.DEADLINE_EXCEEDED,
    GiveUpReason.EXPIRED: WarningCode.DEADLINE_EXCEEDED,
    GiveUpReason.MODEL: WarningCode.MODEL_UNAVAILABLE,
    GiveUpReason.UNPROCESSABLE: WarningCode.MODEL_UNAVAILABLE,
}


def upgraded(request: RewriteRequest, rewrite: Rewrite, now: datetime) -> UpgradeResult:
    """The end of an upgrade whose prompt was rewritten."""
    common = _common(request.task, [*_usage_so_far(request.task), rewrite.usage], now)
    if rewrite.sealed_additions is not None:
        common["sealed_pii"] = [*_sealed_so_far(request.task), rewrite.sealed_additions]
    return UpgradeResult(
        **common,
        status=UpgradeStatus.UPGRADED,
        mode=rewrite.mode or request.mode,
        language=rewrite.language or request.language,
        upgraded_prompt=rewrite.upgraded_prompt,
        reasoning=rewrite.reasoning,
        missing_questions=list(rewrite.missing_questions),
        confidence=rewrite.confidence,
        citations=[request.documents[index] for index in rewrite.cited],
        prompt=rewrite.prompt,
        model=rewrite.usage.model,
        warnings=_merged([*_warnings_so_far(request.task), *rewrite.warnings]),
    )


def original_after_failure(request: RewriteRequest, failure: RewriteFailed, now: datetime) -> UpgradeResult:
    """The end of an upgrade for which the model had no usable answer: the prompt as it came in."""
    spent = [failure.usage] if failure.usage else []
    own = (WarningCode.DEADLINE_EXCEEDED, WarningCode.REWRITE_NOT_BETTER)
    warning = UpgradeWarning(
        code=failure.code if failure.code in own else WarningCode.MODEL_UNAVAILABLE, detail=failure.detail
    )
    return UpgradeResult(
        **_common(request.task, [*_usage_so_far(request.task), *spent], now),
        status=UpgradeStatus.ORIGINAL,
        mode=request.mode,
        language=request.language,
        upgraded_prompt=request.task.user_prompt,
        warnings=_merged([*_warnings_so_far(request.task), warning]),
        error=UpgradeError(code=failure.code, detail=failure.detail),
    )


def original_after_give_up(task: UpgradeTask, given_up: GivenUp, language: str, now: datetime) -> UpgradeResult:
    """The end of an upgrade that a stage could not carry on with: the prompt as it came in."""
    return UpgradeResult(
        **_common(task, _usage_so_far(task), now),
        status=UpgradeStatus.ORIGINAL,
        language=language,
        upgraded_prompt=task.user_prompt,
        warnings=_merged(
            [
                *_warnings_so_far(task),
                UpgradeWarning(code=_WARNING_OF_REASON[given_up.reason], detail=given_up.detail),
            ]
        ),
        error=UpgradeError(code=given_up.reason, detail=given_up.detail),
    )


def _common(task: UpgradeTask, usage: list[ComponentUsage], now: datetime) -> dict[str, object]:
    return {
        "upgrade_id": task.upgrade_id,
        "tenant_id": task.tenant_id,
        "user_ref": task.user_ref,
        "origin": task.origin,
        "user_prompt": task.user_prompt,
        "sealed_pii": _sealed_so_far(task),
        "usage": usage,
        "period": task.period,
        "created_at": task.created_at,
        "completed_at": now,
        "latency_ms": max(0, round((now - task.created_at).total_seconds() * 1000)),
    }


def _sealed_so_far(task: UpgradeTask) -> list[SealedText]:
    return [output.sealed_pii for output in task.outputs if output.sealed_pii]


def _usage_so_far(task: UpgradeTask) -> list[ComponentUsage]:
    return [item for output in task.outputs for item in output.usage]


def _warnings_so_far(task: UpgradeTask) -> list[UpgradeWarning]:
    return [warning for output in task.outputs for warning in output.warnings]


def _merged(warnings: list[UpgradeWarning]) -> list[UpgradeWarning]:
    """Each code once with its first detail, in order."""
    by_code: dict[str, UpgradeWarning] = {}
    for warning in warnings:
        by_code.setdefault(warning.code, warning)
    return list(by_code.values())


_ENDS_AT_ONCE = (GiveUpReason.DEADLINE, GiveUpReason.EXPIRED)
# Model calls that end together would begin together again, and all would wait for the last of them each time.
_AT_WORK_BESIDE_THE_MODEL = 32


class EndingStage:
    """The last stage: records the one end of each upgrade and tells whoever waits for it."""

    def __init__(self, results: Results, model: RewriteModel, repair_holds: RepairHolds, progress: ProgressLog) -> None:
        self._results = results
        self._model = model
        self._repair_holds = repair_holds
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
            await self._repair_holds.end(task.upgrade_id, _spent_on_rewrite(task, end.result))

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


def _spent_on_rewrite(task: UpgradeTask, result: UpgradeResult) -> SpentEvent | None:
    """What the upgrader's recorded usage event counts; None when the end has none."""
    used = next((item for item in result.usage if item.component == COMPONENT), None)
    if used is None:
        return None
    event = UsageRecorded.for_task(task, used, 0, result.completed_at)
    return SpentEvent(event_id=event.event_id, tokens=used.tokens_in + used.tokens_out)


def _task_of(envelope: Envelope) -> UpgradeTask:
    if not isinstance(envelope.data, UpgradeTask):
        raise Unprocessable("not an upgrade")
    return envelope.data
