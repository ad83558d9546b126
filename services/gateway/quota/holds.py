"""Holds: the quota that is reserved for an upgrade or a document, and how large the hold of an upgrade is.

A hold is taken at admission with the most that the work can use. It shrinks to the real usage when the work ends, and
is removed when usage has counted that. How Redis stores a hold is in `shared.contracts.admission_state`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from shared.contracts.upgrade_tasks import Stage

# Templates, the answer's schema, section marks and the frame of the request: 2 to 5 KB by measurement.
INSTRUCTION_BYTES = 6_000
HINT_BYTES = 1_000
QUERY_BYTES = 8_000
QUERY_CHARACTERS_WITH_REFERENCE = 100
CHUNK_BYTES = 5_000
# Six messages of 4,000 characters of at most 4 bytes, with their roles.
RECENT_CONVERSATION_BYTES = 100_000

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
class ModelBounds:
    """Limits of the stages: the longest answers in tokens, and the most model requests that one call can make."""

    summary_tokens: int
    rewrite_tokens: int
    requests_per_call: int


@dataclass(frozen=True)
class UpgradeInput:
    """The size of an upgrade's input: texts in bytes, the prompt also in characters, the most documents to retrieve."""

    itinerary: Sequence[Stage]
    prompt_bytes: int
    prompt_characters: int
    history_bytes: int
    documents: int


def sum_of_stages(shares: Mapping[Stage, HoldSize]) -> HoldSize:
    """The hold of an upgrade: one upgrade, and the tokens and embeddings of all stages together."""
    tokens, embeddings = sum(s.tokens for s in shares.values()), sum(s.embeddings for s in shares.values())
    return HoldSize(upgrades=1, tokens=tokens, embeddings=embeddings)


def stage_holds(given: UpgradeInput, bounds: ModelBounds) -> dict[Stage, HoldSize]:
    """The most that each stage of the itinerary can use.

    A token is at least one byte of its text, so the bytes of a text are an upper bound of its tokens.
    """
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
    # The summary is escaped as JSON, which can double its tokens.
    summary = 2 * bounds.summary_tokens if Stage.SUMMARIZER in given.itinerary else 0
    documents = given.documents * CHUNK_BYTES if Stage.RAG in given.itinerary else 0
    return given.prompt_bytes + conversation + summary + documents


def _call(input_bytes: int, answer_tokens: int, bounds: ModelBounds) -> int:
    """The tokens of all requests of one call. A request that repairs an answer also contains that answer and a hint."""
    request = INSTRUCTION_BYTES + input_bytes + answer_tokens
    return request * bounds.requests_per_call + answer_tokens + HINT_BYTES


def _queries(given: UpgradeInput) -> int:
    """Two for a short prompt in a conversation: it is also searched for together with the text it refers to."""
    return 2 if given.history_bytes and given.prompt_characters <= QUERY_CHARACTERS_WITH_REFERENCE else 1
