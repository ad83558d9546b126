"""Rewrites one prompt: asks the model, and accepts as an upgrade only what passes the checks.

An answer that fails a check is repaired once, with the failed check named. What fails again is no upgrade: the prompt
goes back as it came in, with a warning of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol

from services.upgrader.prompts.platform_templates import PLATFORM_TEMPLATE, PromptTemplate
from services.upgrader.reading.language import detect_language
from services.upgrader.reading.mode import ModeHint, guess_mode
from services.upgrader.rewriting.checks import Material, Verdict, bears_on, check
from services.upgrader.rewriting.foreign_instructions import ForeignInstructions
from services.upgrader.rewriting.kept_parts import keep_verbatim_parts
from shared.contracts.problems import WarningCode
from shared.contracts.token_bounds import RECENT_MESSAGE_CHARACTERS, RECENT_MESSAGES
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
from shared.observability.metrics import REWRITE_CHECKS_FAILED

COMPONENT = "upgrader"
RESERVE_SECONDS = 1.5
"""Left of the deadline to record the end and to tell the client."""
MOST_QUESTIONS = 4
CONFIDENCE_WHERE_UNSAID = 0.5
NOT_BETTER = "The model's answer was no better than the prompt."
_RESERVE = timedelta(seconds=RESERVE_SECONDS)


@dataclass(frozen=True)
class RewriteRequest:
    """Everything the model is given, in pipeline text (redacted). `mode` and `language` are hints of the rules.

    `mode_is_set`: the client has chosen the mode, and the model is told so.
    """

    task: UpgradeTask
    mode: Mode
    mode_is_set: bool
    language: str
    prompt: str
    summary: Summary | None
    conversation: Sequence[ConversationMessage]
    documents: Sequence[RetrievedChunk]
    template: PromptTemplate


@dataclass(frozen=True)
class Rewrite:
    """A rewritten prompt. `cited` are indexes into the request's documents.

    `mode` and `language` are the model's, or the hints where it said nothing. `instructions` is what it was told, for
    the check that nothing of it leaks. `repaired`: the answer is a second one, after a first that could not be used.
    """

    upgraded_prompt: str
    reasoning: str
    missing_questions: tuple[str, ...]
    confidence: float | None
    cited: tuple[int, ...]
    usage: ComponentUsage
    prompt: PromptVersion
    mode: Mode | None = None
    language: str | None = None
    instructions: str = ""
    repaired: bool = False
    warnings: tuple[UpgradeWarning, ...] = ()
    sealed_additions: SealedText | None = None


@dataclass(frozen=True)
class Repair:
    """Why an answer was no upgrade, for the model's second try. `rejected` is the text that it had written."""

    rejected: str
    hint: str


class RewriteFailed(Exception):
    """There is no usable rewrite. `code` and `detail` are for the client; `usage` was spent all the same."""

    def __init__(self, code: str, detail: str, usage: ComponentUsage | None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.usage = usage


class RewriteModel(Protocol):
    async def rewrite(self, request: RewriteRequest, reserve: timedelta, repair: Repair | None = None) -> Rewrite:
        """The model's answer. Raises RewriteFailed at the latest `reserve` before the task's deadline."""


def request_for(task: UpgradeTask, template: PromptTemplate = PLATFORM_TEMPLATE) -> RewriteRequest:
    """What the model is given for this upgrade.

    Where a new topic is sure, neither summary nor conversation is sent. Where it is not, the model sees both and
    decides.
    """
    language = detect_language(task.user_prompt, task.conversation_history)
    hint = guess_mode(task.user_prompt, task.conversation_history, language)
    is_set = task.options.mode != "auto"
    if task.options.mode != "auto":
        hint = ModeHint(task.options.mode, float(task.options.mode == "contextual"))
    starts_anew = bool(task.conversation_history) and hint.mode == "full" and hint.is_sure
    summarizer, rag = task.output_of(Stage.SUMMARIZER), task.output_of(Stage.RAG)
    return RewriteRequest(
        task=task,
        mode=hint.mode,
        mode_is_set=is_set,
        language=language,
        prompt=task.user_prompt,
        summary=summarizer.summary if summarizer and not starts_anew else None,
        conversation=[] if starts_anew else [_clipped(m) for m in task.conversation_history[-RECENT_MESSAGES:]],
        documents=rag.chunks if rag else [],
        template=template,
    )


async def rewrite(request: RewriteRequest, model: RewriteModel, reserve: timedelta = _RESERVE) -> Rewrite:
    """An upgrade of the request's prompt, made `reserve` before the deadline.

    Raises RewriteFailed: the model's failure, or `rewrite_not_better`.
    """
    first = await model.rewrite(request, reserve)
    made, verdict = _judged(request, first)
    if not verdict.failed:
        return made
    _count(verdict, first)
    if first.repaired:
        raise RewriteFailed(WarningCode.REWRITE_NOT_BETTER, NOT_BETTER, first.usage)
    try:
        second = await model.rewrite(request, reserve, Repair(first.upgraded_prompt, verdict.hint))
    except RewriteFailed as failure:
        spent = failure.usage.plus(first.usage) if failure.usage else first.usage
        raise RewriteFailed(WarningCode.REWRITE_NOT_BETTER, NOT_BETTER, spent) from None
    second = replace(second, usage=second.usage.plus(first.usage), repaired=True)
    made, verdict = _judged(request, second)
    if verdict.failed:
        _count(verdict, second)
        raise RewriteFailed(WarningCode.REWRITE_NOT_BETTER, NOT_BETTER, second.usage)
    return made


def _judged(request: RewriteRequest, answer: Rewrite) -> tuple[Rewrite, Verdict]:
    """The answer as a client may see it, and whether it is an upgrade."""
    history = [message.content for message in request.task.conversation_history]
    answer = _without_foreign(ForeignInstructions("\n".join([request.prompt, *history])), answer)
    mode = request.mode if request.mode_is_set else answer.mode or request.mode
    language = answer.language or request.language
    text = keep_verbatim_parts(request.prompt, answer.upgraded_prompt).strip()
    material = Material(
        prompt=request.prompt,
        mode=mode,
        language=language,
        conversation=[*history, *_texts_of(request.summary)],
        documents=[chunk.text for chunk in request.documents],
        instructions=answer.instructions,
    )
    verdict = check(text, material)
    confidence = answer.confidence if answer.confidence is not None else CONFIDENCE_WHERE_UNSAID
    made = replace(
        answer,
        upgraded_prompt=text,
        mode=mode,
        language=language,
        missing_questions=_distinct_questions(answer.missing_questions),
        confidence=min(max(0.0, confidence), verdict.confidence_cap),
        cited=_cited(request.documents, answer.cited, text, language),
    )
    return made, verdict


def _cited(documents: Sequence[RetrievedChunk], cited: Sequence[int], text: str, language: str) -> tuple[int, ...]:
    """The cited documents that were given and bear on the text, each once, in the model's order."""
    given = [index for index in dict.fromkeys(cited) if 0 <= index < len(documents)]
    return tuple(index for index in given if bears_on(documents[index].text, text, language))


def _count(verdict: Verdict, answer: Rewrite) -> None:
    for failed in verdict.failed:
        REWRITE_CHECKS_FAILED.labels(check=failed.value, attempt="repair" if answer.repaired else "first").inc()


def _without_foreign(foreign: ForeignInstructions, answer: Rewrite) -> Rewrite:
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


def _distinct_questions(questions: Sequence[str]) -> tuple[str, ...]:
    """The questions without blank and repeated ones, at most `MOST_QUESTIONS`."""
    by_words = {" ".join(question.lower().split()): " ".join(question.split()) for question in reversed(questions)}
    return tuple(reversed([question for words, question in by_words.items() if words.strip("?!. ")]))[:MOST_QUESTIONS]


def _texts_of(summary: Summary | None) -> list[str]:
    if summary is None:
        return []
    return [summary.goal, *summary.facts, *summary.constraints, *summary.decisions, *summary.tried]


def _clipped(message: ConversationMessage) -> ConversationMessage:
    if len(message.content) <= RECENT_MESSAGE_CHARACTERS:
        return message
    half = RECENT_MESSAGE_CHARACTERS // 2
    return message.model_copy(update={"content": f"{message.content[:half]}\n…\n{message.content[-half:]}"})
