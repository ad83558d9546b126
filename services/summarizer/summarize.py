"""Condenses a conversation to what the rewrite of the next prompt needs."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from shared.contracts.contract import now_utc
from shared.contracts.problems import WarningCode
from shared.contracts.token_bounds import SUMMARY_MESSAGES
from shared.contracts.upgrade_tasks import (
    ComponentUsage,
    ConversationMessage,
    SealedText,
    Stage,
    StageOutput,
    Summary,
    UpgradeTask,
    UpgradeWarning,
)
from shared.service.recorded_stage import StageWork

COMPONENT = "summarizer"
SHARE_OF_TIME = 0.4
"""Of the time that is left until the deadline: a model that hangs here must not cost the stages behind it theirs."""


class SummaryCache(Protocol):
    async def find(self, tenant_id: str, keys: Sequence[str]) -> dict[str, Summary]:
        """The cached summaries among `keys`."""

    async def put(self, tenant_id: str, key: str, summary: Summary, upgrade_id: str) -> None:
        """Keeps a summary that was made for an upgrade."""


@dataclass(frozen=True)
class ModelSummary:
    """What the model made of a conversation, and what that used."""

    summary: Summary
    usage: ComponentUsage
    warnings: tuple[UpgradeWarning, ...] = ()
    sealed_additions: SealedText | None = None
    placeholder_counts: Mapping[str, int] = field(default_factory=dict)


class SummaryFailed(Exception):
    """The model gave no usable summary; `usage` was spent all the same."""

    def __init__(self, detail: str, usage: ComponentUsage | None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.usage = usage


class SummaryModel(Protocol):
    async def summarize(
        self, task: UpgradeTask, previous: Summary | None, messages: Sequence[ConversationMessage], deadline: datetime
    ) -> ModelSummary:
        """Raises SummaryFailed."""


def conversation_keys(history: Sequence[ConversationMessage], version: str) -> list[str]:
    """For each length of the conversation a key over all of it up to there: `keys[i]` covers `history[: i + 1]`."""
    running = hashlib.sha256(version.encode())
    keys = []
    for message in history:
        # The length in front keeps two messages from reading like one.
        running.update(f"{message.role}:{len(message.content)}:{message.content}".encode())
        keys.append(running.copy().hexdigest())
    return keys


async def summarize(
    task: UpgradeTask,
    cache: SummaryCache,
    model: SummaryModel,
    version: str,
    clock: Callable[[], datetime] = now_utc,
) -> StageOutput:
    """The summarizer's output for one upgrade. A model that is out costs the summary, not the upgrade."""
    history = task.conversation_history
    keys = conversation_keys(history, version)
    cached = await cache.find(task.tenant_id, keys[-SUMMARY_MESSAGES - 1 :])
    covered = next((length for length in range(len(keys), 0, -1) if keys[length - 1] in cached), 0)
    previous = cached[keys[covered - 1]] if covered else None
    if previous is not None and covered == len(history):
        hit = ComponentUsage(component=COMPONENT, operation="summarize", cache_hit=True)
        return StageOutput(stage=Stage.SUMMARIZER, summary=previous, usage=[hit])
    unread = history[covered:][-SUMMARY_MESSAGES:]
    try:
        made = await model.summarize(task, previous, unread, clock() + (task.deadline - clock()) * SHARE_OF_TIME)
    except SummaryFailed as failure:
        warning = UpgradeWarning(code=WarningCode.SUMMARY_SKIPPED, detail=failure.detail)
        return StageOutput(
            stage=Stage.SUMMARIZER,
            summary=previous,
            usage=[failure.usage] if failure.usage else [],
            warnings=[warning],
        )
    if made.sealed_additions is None:
        # Otherwise it speaks of values that only this upgrade can open.
        await cache.put(task.tenant_id, keys[-1], made.summary, task.upgrade_id)
    return StageOutput(
        stage=Stage.SUMMARIZER,
        summary=made.summary,
        sealed_pii=made.sealed_additions,
        placeholder_counts=dict(made.placeholder_counts),
        usage=[made.usage],
        warnings=list(made.warnings),
    )


def summarize_work(cache: SummaryCache, model: SummaryModel, version: str) -> StageWork:
    """The summarizer's work on one message, for the stage that records it."""

    async def work(task: UpgradeTask) -> StageOutput:
        return await summarize(task, cache, model, version)

    return work
