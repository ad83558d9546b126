"""Public HTTP bodies of quotas, and the internal ones for holds on embeddings."""

from pydantic import Field

from shared.contracts.contract import Contract
from shared.contracts.plans import Plan
from shared.contracts.quota_events import QuotaPeriod


class MeterView(Contract):
    """One meter: what is counted, what running work may still use, and what is left for more."""

    limit: int | None = Field(description="null when unlimited")
    used: int
    held: int
    remaining: int | None = Field(description="null when unlimited")


class MetersView(Contract):
    upgrades: MeterView
    tokens: MeterView
    embeddings: MeterView


class QuotaView(Contract):
    """Answer of `GET /api/quota`, as of one moment of the current UTC calendar month."""

    plan: Plan
    period: QuotaPeriod
    meters: MetersView


# gateway: POST /internal/holds/embeddings (EmbeddingsHold) -> 204, or 429 quota_exceeded; the same id twice is one hold
class EmbeddingsHold(Contract):
    """What indexing a document, or a search, may use at most. `holdId` names one attempt at it."""

    hold_id: str
    tenant_id: str
    period: str = Field(pattern=r"^\d{4}-(0[1-9]|1[0-2])$")
    embeddings: int = Field(ge=0)
    tokens: int = Field(ge=0)
    lives_seconds: int = Field(default=90_000, gt=0, description="not ended by then, it is given up")


# gateway: POST /internal/holds/embeddings/{holdId}/end (EmbeddingsHoldEnd) -> 204, also for a hold that nobody has
class SpentEvent(Contract):
    """A `usage.recorded.v1` that the attempt has recorded."""

    event_id: str
    embeddings: int = 0
    tokens: int = 0


# summarizer, rag: GET /internal/upgrades/{upgradeId}/spent?tenantId= -> SpentEvents
class SpentEvents(Contract):
    """What a stage has recorded of an upgrade; none where it has done nothing for it."""

    events: list[SpentEvent]


class EmbeddingsHoldEnd(Contract):
    """The attempt is over, and this is what it used."""

    spent: list[SpentEvent] = []
