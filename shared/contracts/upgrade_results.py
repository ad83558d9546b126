"""Contracts of an upgrade's progress and end: stage progress, the stored result and the completed event."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from shared.contracts.contract import Contract, Timestamp
from shared.contracts.upgrade_tasks import ComponentUsage, Origin, RetrievedChunk, SealedText, Stage, UpgradeWarning

_STAGE_ORDER = (Stage.SUMMARIZER, Stage.RAG, Stage.UPGRADER)

# Ids of the events of an upgrade's stream; `stage_step` has those in between.
ACCEPTED_STEP = 1
COMPLETED_STEP = 2 * len(_STAGE_ORDER) + 2

Mode = Literal["full", "contextual"]
StageState = Literal["started", "finished", "skipped"]
Track = Literal["stable", "canary", "pinned"]


class StageProgress(Contract):
    """Data of a `stage` event. `latencyMs` is null until the stage has ended."""

    stage: Stage
    state: StageState
    latency_ms: int | None = None


def stage_step(stage: Stage, state: StageState) -> int:
    """The event id of a stage's progress: 2, 4, 6 when it starts, 3, 5, 7 when it ends."""
    return 2 * _STAGE_ORDER.index(stage) + (2 if state == "started" else 3)


class UpgradeStatus(StrEnum):
    """`accepted`, or how the upgrade ended: rewritten, from the cache, with the original prompt, or failed."""

    ACCEPTED = "accepted"
    UPGRADED = "upgraded"
    CACHED = "cached"
    ORIGINAL = "original"
    FAILED = "failed"


class PromptVersion(Contract):
    """Which template version made the rewrite."""

    name: str
    version: int
    track: Track = "stable"
    prompt_id: str | None = None


class UpgradeError(Contract):
    """Why an upgrade ended without a rewrite."""

    code: str
    detail: str


class UpgradeResult(Contract):
    """The upgrader's record of an ended upgrade, still redacted. The first one written is the one that counts."""

    upgrade_id: str
    tenant_id: str
    user_ref: str | None = None
    origin: Origin = "client"
    status: UpgradeStatus
    mode: Mode = "full"
    language: str | None = Field(default=None, description="BCP 47")
    user_prompt: str
    upgraded_prompt: str | None
    reasoning: str = ""
    missing_questions: list[str] = []
    confidence: float | None = None
    citations: list[RetrievedChunk] = []
    sealed_pii: list[SealedText] = Field(default=[], description="what stages added to the placeholder map")
    prompt: PromptVersion | None = None
    model: str | None = None
    usage: list[ComponentUsage] = []
    warnings: list[UpgradeWarning] = []
    error: UpgradeError | None = None
    period: str
    created_at: Timestamp
    completed_at: Timestamp
    latency_ms: int = Field(description="acceptance to end, milliseconds")


class CitationRef(Contract):
    """A document that was used. `score` is 0..1."""

    document_id: str
    score: float


class UsageTotals(Contract):
    """What all operations of an upgrade used."""

    tokens_in: int = 0
    tokens_out: int = 0
    embeddings: int = 0
    cost_nano_usd: int = 0

    @staticmethod
    def over(usage: list[ComponentUsage]) -> "UsageTotals":
        """The sum of what single operations used."""
        return UsageTotals(
            tokens_in=sum(item.tokens_in for item in usage),
            tokens_out=sum(item.tokens_out for item in usage),
            embeddings=sum(item.embeddings for item in usage),
            cost_nano_usd=sum(item.cost_nano_usd for item in usage),
        )


class UpgradeCompleted(Contract):
    """Data of `upgrades.completed.v1`: one per ended upgrade, redacted."""

    upgrade_id: str
    tenant_id: str
    user_ref: str | None
    origin: Origin
    status: UpgradeStatus
    mode: Mode
    language: str | None
    user_prompt: str
    upgraded_prompt: str | None
    reasoning: str
    missing_questions: list[str]
    confidence: float | None
    citations: list[CitationRef]
    prompt: PromptVersion | None
    model: str | None
    usage: UsageTotals
    latency_ms: int
    warnings: list[UpgradeWarning]
    error: UpgradeError | None
    period: str
    created_at: Timestamp
    occurred_at: Timestamp

    @staticmethod
    def of(result: UpgradeResult) -> "UpgradeCompleted":
        """The event for an ended upgrade."""
        return UpgradeCompleted(
            **result.model_dump(exclude={"citations", "sealed_pii", "usage", "completed_at"}),
            citations=[CitationRef(document_id=c.document_id, score=c.score) for c in result.citations],
            usage=UsageTotals.over(result.usage),
            occurred_at=result.completed_at,
        )
