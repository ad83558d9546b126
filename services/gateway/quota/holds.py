"""How much an upgrade may come to use: the worst case of each stage that it goes through.

A token is at least one byte of the text it stands for, so the bytes of a text are a bound on its tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.contracts.upgrade_tasks import Stage

# Templates, the schema of the answer, section marks and the request's own frame: measured at 2 to 5 KB.
INSTRUCTION_BYTES = 6_000
HINT_BYTES = 1_000
QUERY_BYTES = 8_000
QUERY_CHARACTERS_WITH_REFERENCE = 100
CHUNK_BYTES = 5_000
RECENT_CONVERSATION_BYTES = 100_000
"""Six messages of 4,000 characters of at most 4 bytes, with their roles."""


@dataclass(frozen=True)
class HoldSize:
    """Amounts on the three meters."""

    upgrades: int
    tokens: int
    embeddings: int


NOTHING = HoldSize(0, 0, 0)


@dataclass(frozen=True)
class ModelBounds:
    """What the stages are allowed: the longest answers in tokens, and the most requests that one call can make."""

    summary_tokens: int
    rewrite_tokens: int
    requests_per_call: int


@dataclass(frozen=True)
class UpgradeInput:
    """What an upgrade gives its stages: sizes in bytes, the prompt's length in characters."""

    itinerary: Sequence[Stage]
    prompt_bytes: int
    prompt_characters: int
    history_bytes: int
    documents: int


def sum_of_stages(shares: Mapping[Stage, HoldSize]) -> HoldSize:
    """One upgrade, and on the other meters the most that its stages can spend together."""
    tokens, embeddings = sum(s.tokens for s in shares.values()), sum(s.embeddings for s in shares.values())
    return HoldSize(upgrades=1, tokens=tokens, embeddings=embeddings)


def stage_holds(given: UpgradeInput, bounds: ModelBounds) -> dict[Stage, HoldSize]:
    """The most that each stage of the itinerary can spend."""
    return {stage: _stage_hold(stage, given, bounds) for stage in given.itinerary}


def _stage_hold(stage: Stage, given: UpgradeInput, bounds: ModelBounds) -> HoldSize:
    if stage is Stage.SUMMARIZER:
        return HoldSize(0, _call(given.history_bytes + 2 * bounds.summary_tokens, bounds.summary_tokens, bounds), 0)
    if stage is Stage.RAG:
        requests = _queries(given) * bounds.requests_per_call
        return HoldSize(0, requests * QUERY_BYTES, requests)
    return HoldSize(0, _call(_rewrite_input(given, bounds), bounds.rewrite_tokens, bounds), 0)


def _rewrite_input(given: UpgradeInput, bounds: ModelBounds) -> int:
    conversation = min(given.history_bytes, RECENT_CONVERSATION_BYTES)
    # A summary is written down again as JSON, which can cost its tokens once more.
    summary = 2 * bounds.summary_tokens if Stage.SUMMARIZER in given.itinerary else 0
    documents = given.documents * CHUNK_BYTES if Stage.RAG in given.itinerary else 0
    return given.prompt_bytes + conversation + summary + documents


def _call(input_bytes: int, answer_tokens: int, bounds: ModelBounds) -> int:
    """All requests of one call; the one that repairs an answer is given that answer and a hint besides."""
    request = INSTRUCTION_BYTES + input_bytes + answer_tokens
    return request * bounds.requests_per_call + answer_tokens + HINT_BYTES


def _queries(given: UpgradeInput) -> int:
    """A short prompt within a conversation is also searched for together with what it refers to."""
    return 2 if given.history_bytes and given.prompt_characters <= QUERY_CHARACTERS_WITH_REFERENCE else 1
