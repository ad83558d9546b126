"""Ends upgrades: every way in which an upgrade can end, and the inbox they come from.

The ladder, in this order, each step within the deadline and labelled in `status`, `warnings` and metrics:

1. The model rewrites the prompt: `upgraded`.
2. The model is out, and a second one is set: `upgraded`, with the warning `fallback_model`.
3. Both are out, and the tenant has asked the same before: `cached`, with the age of the answer in the warning.
4. The prompt as it came in: `original`, with the reason. Also where the model's answer was no better than the prompt,
   and where a stage before has given up for lack of time.

An upgrade without a summary or citations, since a stage before failed, goes up the same ladder.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol

from services.upgrader.prompts.platform_templates import PromptTemplate
from services.upgrader.reading.language import detect_language
from services.upgrader.results import CachedAnswer, RecordedEnd, Results
from services.upgrader.rewriting.rewrite import (
    COMPONENT,
    RESERVE_SECONDS,
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
from shared.observability.metrics import UPGRADE_STEPS
from shared.service.keyed_lock import KeyedLock
from shared.service.repair_holds import RepairHolds

_WARNING_OF_REASON = {
    GiveUpReason.DEADLINE: WarningCode.DEADLINE_EXCEEDED,
    GiveUpReason.EXPIRED: WarningCode.DEADLINE_EXCEEDED,
    GiveUpReason.MODEL: WarningCode.MODEL_UNAVAILABLE,
    GiveUpReason.UNPROCESSABLE: WarningCode.MODEL_UNAVAILABLE,
}
_ENDS_AT_ONCE = (GiveUpReason.DEADLINE, GiveUpReason.EXPIRED)
# What another model or an earlier answer can make good. A refusal, or an answer that is no better, is an answer.
_MODEL_IS_OUT = (WarningCode.MODEL_UNAVAILABLE, WarningCode.DEADLINE_EXCEEDED, "model_answer_invalid")
_SHARE_OF_FALLBACK = 0.4
# Model calls that end together would begin together again, and all would wait for the last of them each time.
_AT_WORK_BESIDE_THE_MODEL = 32


class ChoosePrompt(Protocol):
    async def choose(self, task: UpgradeTask) -> PromptTemplate:
        """The template that an upgrade uses. Raises Transient where it cannot be told yet."""


class Ladder:
    """Ends one upgrade as well as it can be ended. `fallback` is a second model or provider, None where none is set."""

    def __init__(
        self, model: RewriteModel, results: Results, *, fallback: RewriteModel | None, cached_for: timedelta
    ) -> None:
        self._model = model
        self._fallback = fallback
        self._results = results
        self._cached_for = cached_for

    async def end_of(self, request: RewriteRequest) -> UpgradeResult:
        """The end of the upgrade. Raises Transient where the store is out."""
        reserve = timedelta(seconds=RESERVE_SECONDS)
        try:
            made = await rewrite(request, self._model, reserve + self._left_for_fallback(request))
            return _step("model", upgraded(request, made, now_utc()))
        except RewriteFailed as failure:
            first = failure
        if first.code not in _MODEL_IS_OUT:
            return _step("original", original_after_failure(request, first, now_utc()))
        if self._fallback is not None:
            try:
                made = await rewrite(request, self._fallback, reserve)
                return _step("fallback", upgraded_by_fallback(request, made, first, now_utc()))
            except RewriteFailed as failure:
                spent = first.usage.plus(failure.usage) if first.usage else failure.usage
                first = RewriteFailed(first.code, first.detail, spent)
        answer = await self._results.cached_answer(request.task, now_utc() - self._cached_for)
        if answer is not None:
            return _step("cached", from_cache(request, answer, first, now_utc()))
        return _step("original", original_after_failure(request, first, now_utc()))

    def _left_for_fallback(self, request: RewriteRequest) -> timedelta:
        """What the first model leaves of the deadline, so that the second can still answer."""
        if self._fallback is None:
            return timedelta()
        return max(timedelta(), request.task.deadline - now_utc()) * _SHARE_OF_FALLBACK


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


def upgraded_by_fallback(
    request: RewriteRequest, rewrite: Rewrite, first: RewriteFailed, now: datetime
) -> UpgradeResult:
    """The end of an upgrade that the second model rewrote. What the first one used is on the bill too."""
    result = upgraded(request, rewrite, now)
    warning = UpgradeWarning(
        code=WarningCode.FALLBACK_MODEL, detail=f"A second model answered, since the first did not: {first.detail}"
    )
    usage = [*_usage_so_far(request.task), *([first.usage] if first.usage else []), rewrite.usage]
    return result.model_copy(update={"usage": usage, "warnings": _merged([*result.warnings, warning])})


def from_cache(request: RewriteRequest, answer: CachedAnswer, first: RewriteFailed, now: datetime) -> UpgradeResult:
    """The end of an upgrade that an earlier answer to the same question serves."""
    earlier = answer.result
    minutes = max(1, round((now - earlier.completed_at).total_seconds() / 60))
    warnings = [
        UpgradeWarning(code=WarningCode.MODEL_UNAVAILABLE, detail=first.detail),
        UpgradeWarning(code=WarningCode.CACHED_ANSWER, detail=f"This answer is {minutes} minutes old."),
    ]
    spent = [first.usage] if first.usage else []
    return UpgradeResult(
        **_common(request.task, [*_usage_so_far(request.task), *spent], now),
        status=UpgradeStatus.CACHED,
        mode=earlier.mode,
        language=earlier.language,
        upgraded_prompt=earlier.upgraded_prompt,
        reasoning=earlier.reasoning,
        missing_questions=earlier.missing_questions,
        confidence=earlier.confidence,
        citations=earlier.citations,
        prompt=earlier.prompt,
        model=earlier.model,
        warnings=_merged([*_warnings_so_far(request.task), *warnings]),
    )


def original_after_failure(request: RewriteRequest, failure: RewriteFailed, now: datetime) -> UpgradeResult:
    """The end of an upgrade for which there was no usable answer: the prompt as it came in."""
    spent = [failure.usage] if failure.usage else []
    own = (WarningCode.DEADLINE_EXCEEDED, WarningCode.REWRITE_NOT_BETTER)
    waited = max(0.0, (now - request.task.created_at).total_seconds())
    detail = f"{failure.detail} Waited {waited:.1f} s in all."
    warning = UpgradeWarning(code=failure.code if failure.code in own else WarningCode.MODEL_UNAVAILABLE, detail=detail)
    return UpgradeResult(
        **_common(request.task, [*_usage_so_far(request.task), *spent], now),
        status=UpgradeStatus.ORIGINAL,
        mode=request.mode,
        language=request.language,
        upgraded_prompt=request.task.user_prompt,
        warnings=_merged([*_warnings_so_far(request.task), warning]),
        error=UpgradeError(code=failure.code, detail=detail),
    )


def original_after_give_up(task: UpgradeTask, given_up: GivenUp, language: str, now: datetime) -> UpgradeResult:
    """The end of an upgrade that a stage before could not carry on with: the prompt as it came in."""
    warning = UpgradeWarning(code=_WARNING_OF_REASON[given_up.reason], detail=given_up.detail)
    return UpgradeResult(
        **_common(task, _usage_so_far(task), now),
        status=UpgradeStatus.ORIGINAL,
        language=language,
        upgraded_prompt=task.user_prompt,
        warnings=_merged([*_warnings_so_far(task), warning]),
        error=UpgradeError(code=given_up.reason, detail=given_up.detail),
    )


class EndingStage:
    """The last stage: records the one end of each upgrade and tells whoever waits for it."""

    def __init__(
        self,
        results: Results,
        ladder: Ladder,
        prompts: ChoosePrompt,
        repair_holds: RepairHolds,
        progress: ProgressLog,
    ) -> None:
        self._results = results
        self._prompts = prompts
        self._ladder = ladder
        self._repair_holds = repair_holds
        self._progress = progress
        self._upgrade_lock = KeyedLock()
        self._turns = asyncio.Semaphore(_AT_WORK_BESIDE_THE_MODEL)

    async def handle(self, envelope: Envelope) -> None:
        """Returns when the end is recorded and published. Raises Transient when store or broker are out."""
        task = _task_of(envelope)
        if task.given_up and task.given_up.reason in _ENDS_AT_ONCE:
            await self.give_up(envelope, task.given_up)
            return
        async with self._upgrade_lock.hold(task.upgrade_id):
            async with self._turns:
                if end := await self._results.find_end(task.upgrade_id):
                    await self._publish(task, end)
                    return
                await self._progress.stage(task, Stage.UPGRADER, "started")
                request = request_for(task, await self._prompts.choose(task))
            result = await self._ladder.end_of(request)
            async with self._turns:
                end = await self._results.end(task, result)
                latency_ms = end.result.usage[-1].latency_ms if end.result.usage else 0
                await self._progress.stage(task, Stage.UPGRADER, "finished", latency_ms)
                await self._publish(task, end)
            await self._repair_holds.end(task.upgrade_id, _spent_on_rewrite(task, end.result))

    async def give_up(self, envelope: Envelope, given_up: GivenUp) -> None:
        """Ends the upgrade without the model, unless it has ended already."""
        task = _task_of(envelope)
        end = await self._results.find_end(task.upgrade_id)
        if end is None:
            language = detect_language(task.user_prompt, task.conversation_history)
            original = _step("original", original_after_give_up(task, given_up, language, now_utc()))
            end = await self._results.end(task, original)
            await self._progress.stage(task, Stage.UPGRADER, "skipped", 0)
        await self._publish(task, end)

    async def _publish(self, task: UpgradeTask, end: RecordedEnd) -> None:
        await self._progress.completed(task, end.result)
        await asyncio.sleep(0)  # the reply goes first
        await self._results.publish_facts(end)


def _step(name: str, result: UpgradeResult) -> UpgradeResult:
    UPGRADE_STEPS.labels(step=name).inc()
    return result


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


def _merged(warnings: Sequence[UpgradeWarning]) -> list[UpgradeWarning]:
    """Each code once with its first detail, in order."""
    by_code: dict[str, UpgradeWarning] = {}
    for warning in warnings:
        by_code.setdefault(warning.code, warning)
    return list(by_code.values())


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
