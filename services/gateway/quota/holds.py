"""Holds: the quota that is reserved for an upgrade or a document, and how large the hold of an upgrade is.

A hold is taken at admission. For each stage it has the tokens of its input and of one answer; a second answer, after a
first that was billed and could not be used, takes a hold of its own. Requests without an answer are not billed and hold
nothing. A hold shrinks to the real usage when the work ends, and is removed when usage has counted that. How Redis
stores a hold is in `shared.contracts.admission_state`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from shared.contracts.token_bounds import (
    RECENT_MESSAGE_CHARACTERS,
    RECENT_MESSAGES,
    REWRITE_FRAME_TOKENS,
    SUMMARY_FRAME_TOKENS,
    SUMMARY_MESSAGES,
    chunk_tokens,
    clipped_bound,
    query_tokens,
    rewrite_answer_tokens,
    token_bound,
)
from shared.contracts.upgrade_tasks import Stage

QUERY_CHARACTERS_WITH_REFERENCE = 100
_MESSAGES_IN_REFERENCE = 2
_MESSAGE_FRAME_TOKENS = 4
_EMBEDDING_REQUESTS = 2
"""A request whose answer has no vectors is billed, and made once more."""

ChangeKind = Literal["left", "drop", "counted", "keep"]


@dataclass(frozen=True)
class HoldSize:
    """Amounts on the three meters."""

    upgrades: int
    tokens: int
    embeddings: int


NOTHING = HoldSize(0, 0, 0)


@dataclass(frozen=True)
class Hold:
    """A hold as admission takes and releases it.

    `hold_id` is the id of the upgrade, or of one attempt to index a document. `period` is a month, `YYYY-MM`. After
    `expires_at` the work can use nothing more. `subject` is the user, or else the credential, whose rate limit applies.
    `key_hash` and `body_hash` belong to the idempotency key that is claimed together with the hold.
    """

    tenant_id: str
    hold_id: str
    period: str
    size: HoldSize
    expires_at: datetime
    subject: str = ""
    key_hash: str | None = None
    body_hash: str | None = None


@dataclass(frozen=True)
class HoldSettlement:
    """The real usage that replaces the size of a hold whose work has ended. None keeps the held amount."""

    hold_id: str
    upgrades: int
    tokens: int | None
    embeddings: int | None


@dataclass(frozen=True)
class HoldChange:
    """The change of one hold that goes with newer counters.

    - `left`: the work has ended, and these amounts are not in the counters yet.
    - `drop`: no work stands behind the hold; it is removed.
    - `counted`: the counters include its upgrade, though its record is still open; it holds no upgrade any more.
    - `keep`: nothing but the time of the next check changes.

    `due_ms` is the time of the next check, in ms since 1970.
    """

    hold_id: str
    kind: ChangeKind
    upgrades: int = 0
    tokens: int = 0
    embeddings: int = 0
    due_ms: int = 0


@dataclass(frozen=True)
class AnswerLimits:
    """The most tokens that the stages are configured to let the model answer with."""

    summary_tokens: int
    rewrite_tokens: int


@dataclass(frozen=True)
class UpgradeInput:
    """What the stages of one upgrade read: the prompt, the messages of the conversation, at most so many chunks."""

    itinerary: Sequence[Stage]
    prompt: str
    messages: Sequence[str]
    chunks: int


def sum_of_stages(shares: Mapping[Stage, HoldSize]) -> HoldSize:
    """One upgrade, and the tokens and embeddings of all stages."""
    tokens, embeddings = sum(s.tokens for s in shares.values()), sum(s.embeddings for s in shares.values())
    return HoldSize(upgrades=1, tokens=tokens, embeddings=embeddings)


def stage_holds(given: UpgradeInput, limits: AnswerLimits) -> dict[Stage, HoldSize]:
    """The most that each stage of the itinerary can use."""
    return {stage: _stage_hold(stage, given, limits) for stage in given.itinerary}


def larger_holds(one: Mapping[Stage, HoldSize], other: Mapping[Stage, HoldSize]) -> dict[Stage, HoldSize]:
    """For each stage the larger amounts. Both are of the same itinerary."""
    return {
        stage: HoldSize(0, max(a.tokens, other[stage].tokens), max(a.embeddings, other[stage].embeddings))
        for stage, a in one.items()
    }


def _stage_hold(stage: Stage, given: UpgradeInput, limits: AnswerLimits) -> HoldSize:
    if stage is Stage.SUMMARIZER:
        read = [_MESSAGE_FRAME_TOKENS + token_bound(text) for text in given.messages[-SUMMARY_MESSAGES:]]
        previous = limits.summary_tokens
        return HoldSize(0, SUMMARY_FRAME_TOKENS + sum(read) + previous + limits.summary_tokens, 0)
    if stage is Stage.RAG:
        queries = _queries(given, limits)
        return HoldSize(0, _EMBEDDING_REQUESTS * sum(queries), len(queries))
    answer = min(limits.rewrite_tokens, rewrite_answer_tokens(given.prompt, given.messages))
    return HoldSize(0, _rewrite_input(given, limits) + answer, 0)


def _rewrite_input(given: UpgradeInput, limits: AnswerLimits) -> int:
    recent = [
        _MESSAGE_FRAME_TOKENS + clipped_bound(text, RECENT_MESSAGE_CHARACTERS)
        for text in given.messages[-RECENT_MESSAGES:]
    ]
    summary = limits.summary_tokens if Stage.SUMMARIZER in given.itinerary else 0
    chunks = given.chunks * chunk_tokens(given.prompt) if Stage.RAG in given.itinerary else 0
    return REWRITE_FRAME_TOKENS + token_bound(given.prompt) + sum(recent) + summary + chunks


def _queries(given: UpgradeInput, limits: AnswerLimits) -> list[int]:
    """The tokens of each query. A short prompt in a conversation is also searched for with what it refers to."""
    prompt = query_tokens(given.prompt)
    if not given.messages or len(given.prompt) > QUERY_CHARACTERS_WITH_REFERENCE:
        return [prompt]
    summary = limits.summary_tokens if Stage.SUMMARIZER in given.itinerary else 0
    said = sorted(query_tokens(text) for text in given.messages)[-_MESSAGES_IN_REFERENCE:]
    return [prompt, prompt + max(summary, sum(said))]
