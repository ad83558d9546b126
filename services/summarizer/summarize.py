"""Summarizes the conversation before a prompt, for the stage that rewrites the prompt."""

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

COMPONENT = "summarizer"
OPERATION = "summarize"
# Part of the time until the deadline that the model may use, so that a hanging model leaves time to later stages.
_TIME_SHARE = 0.4


class SummaryCache(Protocol):
    async def find(self, tenant_id: str, keys: Sequence[str]) -> dict[str, Summary]:
        """The cached summaries among `keys`."""

    async def put(self, tenant_id: str, key: str, summary: Summary, upgrade_id: str) -> None:
        """Stores a summary that was made for an upgrade."""


@dataclass(frozen=True)
class ModelSummary:
    """The model's summary of a conversation, with what the call used."""

    summary: Summary
    usage: ComponentUsage
    warnings: tuple[UpgradeWarning, ...] = ()
    sealed_additions: SealedText | None = None
    placeholder_counts: Mapping[str, int] = field(default_factory=dict)


class SummaryFailed(Exception):
    """The model returned no usable summary; `usage` is charged nevertheless."""

    def __init__(self, detail: str, usage: ComponentUsage | None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.usage = usage


class SummaryModel(Protocol):
    async def summarize(
        self, task: UpgradeTask, previous: Summary | None, messages: Sequence[ConversationMessage], deadline: datetime
    ) -> ModelSummary:
        """Updates `previous` with `messages`. Raises SummaryFailed, no later than `deadline`."""


def conversation_keys(history: Sequence[ConversationMessage], version: str) -> list[str]:
    """One cache key per prefix of the conversation: `keys[i]` is a hash of `version` and `history[: i + 1]`."""
    running = hashlib.sha256(version.encode())
    keys = []
    for message in history:
        # With the length in front, no two lists of messages have the same bytes.
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
    """Summarizes a task's conversation, starting from the longest prefix that has a cached summary.

    When the model fails, the output has the warning `summary_skipped` and the earlier summary, if any: the upgrade
    continues. Raises Transient when the cache cannot be read.
    """
    history = task.conversation_history
    keys = conversation_keys(history, version)
    cached = await cache.find(task.tenant_id, keys[-SUMMARY_MESSAGES - 1 :])
    covered = next((length for length in range(len(keys), 0, -1) if keys[length - 1] in cached), 0)
    previous = cached[keys[covered - 1]] if covered else None
    if previous is not None and covered == len(history):
        hit = ComponentUsage(component=COMPONENT, operation=OPERATION, cache_hit=True)
        return StageOutput(stage=Stage.SUMMARIZER, summary=previous, usage=[hit])
    unread = history[covered:][-SUMMARY_MESSAGES:]
    try:
        made = await model.summarize(task, previous, unread, clock() + (task.deadline - clock()) * _TIME_SHARE)
    except SummaryFailed as failure:
        warning = UpgradeWarning(code=WarningCode.SUMMARY_SKIPPED, detail=failure.detail)
        return StageOutput(
            stage=Stage.SUMMARIZER,
            summary=previous,
            usage=[failure.usage] if failure.usage else [],
            warnings=[warning],
        )
    if made.sealed_additions is None:
        # Other upgrades could not resolve placeholders whose values are sealed for this one.
        await cache.put(task.tenant_id, keys[-1], made.summary, task.upgrade_id)
    return StageOutput(
        stage=Stage.SUMMARIZER,
        summary=made.summary,
        sealed_pii=made.sealed_additions,
        placeholder_counts=dict(made.placeholder_counts),
        usage=[made.usage],
        warnings=list(made.warnings),
    )
