"""Rewrites one prompt: chooses the kind of rewrite, asks the model, and checks the answer."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from typing import Protocol

from services.upgrader.reading.language import detect_language
from services.upgrader.reading.mode import decide_mode
from shared.contracts.problems import WarningCode
from shared.contracts.upgrade_results import Mode, PromptVersion
from shared.contracts.upgrade_tasks import (
    ComponentUsage,
    ConversationMessage,
    RetrievedChunk,
    SealedText,
    Stage,
    Summary,
    UpgradeTask,
    UpgradeWarning,
)
from shared.privacy.injection import remove, scan

_CODE_BLOCK = re.compile(r"```.*?```", re.DOTALL)
_QUOTATION = re.compile(r'"([^"\n]{25,2000})"|“([^”\n]{25,2000})”|«([^»\n]{25,2000})»|„([^“\n]{25,2000})“')


def keep_verbatim_parts(prompt: str, upgraded: str) -> str:
    """`upgraded`, with the code blocks and quotations of `prompt` that it lost put back at its end."""
    lost = [part for part in verbatim_parts(prompt) if _squeezed(part) not in _squeezed(upgraded)]
    return "\n\n".join([upgraded.rstrip(), *lost]) if lost else upgraded


def verbatim_parts(prompt: str) -> list[str]:
    """The fenced code blocks of a prompt, then the quotations outside of them, in order."""
    blocks = _CODE_BLOCK.findall(prompt)
    prose = _CODE_BLOCK.sub(" ", prompt)
    return blocks + [match.group(0) for match in _QUOTATION.finditer(prose)]


def _squeezed(text: str) -> str:
    """White space and the kind of quotation mark do not count as a change, and fences may carry a language."""
    without_fences = re.sub(r"```\w*", "", text)
    return re.sub(r"[\s\"“”„«»]+", " ", without_fences).strip()


class ForeignInstructions:
    """Tells instructions to the model that the user's own words hold from those that came from elsewhere."""

    def __init__(self, own_words: str) -> None:
        self._own_words = own_words

    def are_in(self, text: str) -> bool:
        findings = scan(text)
        return bool(findings) and not all(finding.rule in self._own_rules for finding in findings)

    def removed_from(self, text: str) -> str:
        """`text` without the sentences that instruct the model; unchanged when the user gave all instructions in it."""
        return remove(text)[0] if self.are_in(text) else text

    @cached_property
    def _own_rules(self) -> set[str]:
        """Found when first needed: a conversation may be long, and few answers hold any instruction."""
        return {finding.rule for finding in scan(self._own_words)}


COMPONENT = "upgrader"
RESERVE_SECONDS = 1.5
"""Left of the deadline to record the end and to tell the client."""
RECENT_MESSAGES = 6
RECENT_MESSAGE_CHARACTERS = 4_000


@dataclass(frozen=True)
class RewriteRequest:
    """Everything the model is given, in pipeline text (redacted)."""

    task: UpgradeTask
    mode: Mode
    language: str
    prompt: str
    summary: Summary | None
    conversation: Sequence[ConversationMessage]
    documents: Sequence[RetrievedChunk]


@dataclass(frozen=True)
class Rewrite:
    """A rewritten prompt. `cited` are indexes into the request's documents."""

    upgraded_prompt: str
    reasoning: str
    missing_questions: tuple[str, ...]
    confidence: float | None
    cited: tuple[int, ...]
    usage: ComponentUsage
    prompt: PromptVersion
    warnings: tuple[UpgradeWarning, ...] = ()
    sealed_additions: SealedText | None = None


class RewriteFailed(Exception):
    """The model gave no usable rewrite. `code` and `detail` are for the client; `usage` was spent all the same."""

    def __init__(self, code: str, detail: str, usage: ComponentUsage | None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.usage = usage


class RewriteModel(Protocol):
    async def rewrite(self, request: RewriteRequest, reserve: timedelta) -> Rewrite:
        """Raises RewriteFailed at the latest `reserve` before the task's deadline."""


def request_for(task: UpgradeTask) -> RewriteRequest:
    """What the model needs for this upgrade."""
    summarizer = task.output_of(Stage.SUMMARIZER)
    rag = task.output_of(Stage.RAG)
    summary = summarizer.summary if summarizer else None
    mode = decide_mode(task.user_prompt, task.conversation_history)
    # A new topic owes nothing to the old one; a follow-up needs the words it refers to, not only their summary.
    recent = task.conversation_history[-RECENT_MESSAGES:] if mode == "contextual" or summary is None else []
    return RewriteRequest(
        task=task,
        mode=mode,
        language=detect_language(task.user_prompt, task.conversation_history),
        prompt=task.user_prompt,
        summary=summary,
        conversation=[_clipped(message) for message in recent],
        documents=rag.chunks if rag else [],
    )


async def rewrite(request: RewriteRequest, model: RewriteModel) -> Rewrite:
    """A rewrite that keeps what the user gave verbatim and follows nobody but the user. Raises RewriteFailed."""
    answer = await model.rewrite(request, timedelta(seconds=RESERVE_SECONDS))
    own_words = "\n".join([request.prompt, *(message.content for message in request.task.conversation_history)])
    answer = _without(ForeignInstructions(own_words), answer)
    text = keep_verbatim_parts(request.prompt, answer.upgraded_prompt)
    if not text.strip():
        raise RewriteFailed("model_answer_invalid", "The model's answer held no usable prompt.", answer.usage)
    cited = tuple(index for index in dict.fromkeys(answer.cited) if 0 <= index < len(request.documents))
    return replace(answer, upgraded_prompt=text, cited=cited)


def _without(foreign: ForeignInstructions, answer: Rewrite) -> Rewrite:
    """`answer` without foreign instructions in anything that the client reads, and with a warning if it held any."""
    cleaned = replace(
        answer,
        upgraded_prompt=foreign.removed_from(answer.upgraded_prompt),
        reasoning=foreign.removed_from(answer.reasoning),
        # Dropped whole: what is left of a question without one of its sentences asks for something else.
        missing_questions=tuple(question for question in answer.missing_questions if not foreign.are_in(question)),
    )
    if cleaned == answer:
        return answer
    detail = "An instruction that stood only in retrieved text was taken out of the answer."
    warning = UpgradeWarning(code=WarningCode.INJECTION_REMOVED, detail=detail)
    return replace(cleaned, warnings=(*answer.warnings, warning))


def _clipped(message: ConversationMessage) -> ConversationMessage:
    if len(message.content) <= RECENT_MESSAGE_CHARACTERS:
        return message
    half = RECENT_MESSAGE_CHARACTERS // 2
    return message.model_copy(update={"content": f"{message.content[:half]}\n…\n{message.content[-half:]}"})
