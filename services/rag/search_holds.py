"""A search that has to ask the model holds its embedding first, as a document does."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from services.rag.embedding_holds import EmbeddingHolds, HoldsUnavailable
from services.rag.embeddings import Embeddings
from services.rag.preparation_model import searchable
from shared.contracts.contract import now_utc, period_of
from shared.contracts.ids import derived_id, new_id
from shared.contracts.quota_http import EmbeddingsHold, SpentEvent
from shared.contracts.usage_events import UsageRecorded
from shared.llm.client import ModelUsage
from shared.observability.logs import get_logger

# A query is embedded once more when the model turns out to be another one than before.
_EMBEDDINGS = 2
_LIVES_SECONDS = 600

log = get_logger(__name__)


@dataclass
class SearchHold:
    """One search. Whatever it used is booked under its own event, in the period in which it began."""

    hold_id: str
    period: str
    spent: list[SpentEvent] = field(default_factory=list)

    def fact(self, tenant_id: str, used: ModelUsage) -> UsageRecorded:
        """The event for the ledger."""
        return UsageRecorded(
            event_id=derived_id(self.hold_id, "search"),
            tenant_id=tenant_id,
            component="rag",
            operation="search",
            tokens_in=used.tokens_in,
            tokens_out=used.tokens_out,
            embeddings=used.embeddings,
            cost_nano_usd=used.cost_nano_usd,
            latency_ms=used.latency_ms,
            model=used.model,
            period=self.period,
            occurred_at=now_utc(),
        )

    def booked(self, fact: UsageRecorded) -> None:
        """The event is recorded: the hold stays until the ledger has it."""
        tokens = fact.tokens_in + fact.tokens_out
        self.spent.append(SpentEvent(event_id=fact.event_id, embeddings=fact.embeddings, tokens=tokens))


class SearchHolds:
    """Takes and ends the holds of searches."""

    def __init__(self, embeddings: Embeddings, holds: EmbeddingHolds) -> None:
        self._embeddings = embeddings
        self._holds = holds

    @contextlib.asynccontextmanager
    async def held(self, tenant_id: str, query: str) -> AsyncIterator[SearchHold]:
        """Raises NoRoom, HoldsUnavailable and StorageUnavailable, and then nothing may be embedded."""
        hold = SearchHold(new_id(), period_of(now_utc()))
        if not await self._embeddings.unknown(tenant_id, [searchable(query)]):
            yield hold
            return
        tokens = _EMBEDDINGS * max(1, len(query.encode("utf-8", "replace")))
        asked = EmbeddingsHold(
            hold_id=hold.hold_id,
            tenant_id=tenant_id,
            period=hold.period,
            embeddings=_EMBEDDINGS,
            tokens=tokens,
            lives_seconds=_LIVES_SECONDS,
        )
        try:
            await self._holds.take(asked)
        except HoldsUnavailable:
            # It may have been taken all the same.
            await self._end(hold)
            raise
        try:
            yield hold
        finally:
            await self._end(hold)

    async def _end(self, hold: SearchHold) -> None:
        try:
            await self._holds.end(hold.hold_id, hold.spent)
        except HoldsUnavailable:
            # The gateway gives it up by itself when its time is over.
            log.warning("search_hold_not_ended", hold_id=hold.hold_id)
