"""Ends an upgrade: the one place where an upgrade gets the status that its client will see."""

from datetime import datetime

from services.upgrader.rewrite import COMPONENT, Rewrite, RewriteFailed, RewriteRequest
from shared.contracts.ids import derived_id
from shared.contracts.problems import WarningCode
from shared.contracts.topics import COMPLETED
from shared.contracts.upgrade_results import UpgradeCompleted, UpgradeError, UpgradeResult, UpgradeStatus
from shared.contracts.upgrade_tasks import (
    ComponentUsage,
    GivenUp,
    GiveUpReason,
    SealedText,
    Stage,
    StageOutput,
    UpgradeTask,
    UpgradeWarning,
)

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
        mode=request.mode,
        language=request.language,
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
    late = failure.code == WarningCode.DEADLINE_EXCEEDED
    warning = UpgradeWarning(
        code=WarningCode.DEADLINE_EXCEEDED if late else WarningCode.MODEL_UNAVAILABLE, detail=failure.detail
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


def completed_event_id(upgrade_id: str) -> str:
    """The id of the one `upgrades.completed.v1` of an upgrade."""
    return derived_id(upgrade_id, "completed")


def own_usage(result: UpgradeResult) -> StageOutput:
    """The upgrader's share of a result's usage: what it, and no stage before it, owes the ledger."""
    return StageOutput(stage=Stage.UPGRADER, usage=[item for item in result.usage if item.component == COMPONENT])


def completed_fact(result: UpgradeResult) -> tuple[str, UpgradeCompleted]:
    """The key and the data of the fact that an upgrade has ended, on the topic COMPLETED."""
    assert COMPLETED.key == "tenantId"  # noqa: S101 -- the registry says what the key is
    return result.tenant_id, UpgradeCompleted.of(result)


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
