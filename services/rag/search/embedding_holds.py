"""Holds on embeddings, taken at the gateway before the first text is embedded and ended with what was used."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import orjson

from services.rag.search.embeddings import Embeddings
from services.rag.search.preparation_model import searchable
from services.rag.store import RagStore
from shared.contracts.contract import Contract, derived_id, format_utc, new_id, now_utc, period_of
from shared.contracts.internal_http import INTERNAL_TOKEN_HEADER
from shared.contracts.problems import QUOTA_EXCEEDED
from shared.contracts.quota import EmbeddingsHold, EmbeddingsHoldEnd, Meter, SpentEvent
from shared.contracts.usage import UsageRecorded
from shared.llm.client import ModelUsage
from shared.messaging.errors import Transient
from shared.observability.logs import get_logger

_BATCH = 100
_TEXTS_AT_ONCE = 256

log = get_logger(__name__)


class HoldsUnavailable(Transient):
    """The gateway cannot be asked now."""


class NoRoom(Exception):
    """The tenant's quota has no room. The text is for the tenant; `problem` is the gateway's own answer.

    `retry_after` is when another try is worth it, in seconds as the gateway wrote them.
    """

    def __init__(self, meter: Meter, problem: dict[str, Any] | None = None, retry_after: str | None = None) -> None:
        super().__init__(f"The {meter.value} left of this month's quota do not suffice for this document.")
        self.problem = problem or {}
        self.retry_after = retry_after


class EmbeddingHolds(Protocol):
    async def take(self, hold: EmbeddingsHold) -> None:
        """Taken when it returns; the same id twice is one hold. Raises NoRoom and HoldsUnavailable."""

    async def end(self, hold_id: str, spent: Sequence[SpentEvent]) -> None:
        """The hold becomes what was used. Raises HoldsUnavailable."""


class OpenHolds:
    """For a rag whose tenants have no limits."""

    async def take(self, hold: EmbeddingsHold) -> None: ...

    async def end(self, hold_id: str, spent: Sequence[SpentEvent]) -> None: ...


class RunHolds:
    """Each indexing run has one hold, named by its generation. The run's record remembers that it is to be ended."""

    def __init__(self, store: RagStore, embeddings: Embeddings, holds: EmbeddingHolds) -> None:
        self._runs = store.runs
        self._embeddings = embeddings
        self._holds = holds

    async def begin(self, record: dict[str, Any], generation: str) -> None:
        """Records a run. Who begins one has the document's lease, so its earlier runs are over, however they ended."""
        await self.end_all(record["_id"])
        await self._runs.insert(
            {
                "_id": generation,
                "tenantId": record["tenantId"],
                "documentId": record["_id"],
                "startedAt": format_utc(now_utc()),
                "spent": [],
            }
        )

    async def take(self, record: dict[str, Any], generation: str, texts: Sequence[str]) -> None:
        """Holds what embedding the texts may use. Raises NoRoom and HoldsUnavailable."""
        try:
            await self._holds.take(_hold(record, generation, texts))
        except NoRoom:
            # An earlier run may have embedded some of it; those cost nothing again.
            unknown = await self._unknown(record["tenantId"], texts)
            if len(unknown) == len(texts):
                raise
            await self._holds.take(_hold(record, generation, unknown))

    async def spent(self, generation: str, event: SpentEvent) -> None:
        """Notes an event that is recorded to be told: the hold stays until the ledger has it."""
        await self._runs.update_one({"_id": generation}, {"$push": {"spent": {"$each": [event.to_document()]}}})

    async def end(self, generation: str) -> None:
        """The run is over. While the gateway is out its record stays, for the sweep."""
        await self._runs.update_one({"_id": generation}, {"$set": {"over": True}})
        run = await self._runs.get(generation)
        if run is None:
            return
        try:
            await self._holds.end(generation, [SpentEvent.model_validate(event) for event in run.get("spent", [])])
        except HoldsUnavailable:
            log.warning("hold_not_ended_yet", generation=generation)
            return
        await self._runs.delete_many({"_id": generation})

    async def end_all(self, document_id: str) -> None:
        """All runs of a document are over."""
        for run in await self._runs.find({"documentId": document_id}, limit=_BATCH):
            await self.end(run["_id"])

    async def end_over(self) -> None:
        """Ends what the gateway could not be told of before."""
        for run in await self._runs.find({"over": True}, limit=_BATCH):
            await self.end(run["_id"])

    async def _unknown(self, tenant_id: str, texts: Sequence[str]) -> list[str]:
        unknown: list[str] = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            unknown += await self._embeddings.unknown(tenant_id, texts[start : start + _TEXTS_AT_ONCE])
        return unknown


def _hold(record: dict[str, Any], generation: str, texts: Sequence[str]) -> EmbeddingsHold:
    return EmbeddingsHold(
        hold_id=generation,
        tenant_id=record["tenantId"],
        period=record["period"],
        embeddings=len(texts),
        # A token is at least one byte of its text.
        tokens=sum(max(1, len(text.encode("utf-8", "replace"))) for text in texts),
    )


# The gateway may have to rebuild a tenant's state first.
_TIMEOUT = httpx.Timeout(12.0, connect=1.0)
_PATH = "/internal/holds/embeddings"
_JSON = {"Content-Type": "application/json"}


class GatewayHolds:
    """`EmbeddingHolds` of `embedding_holds`. Component."""

    def __init__(self, gateway_url: str, internal_token: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=gateway_url, timeout=_TIMEOUT, headers={INTERNAL_TOKEN_HEADER: internal_token}
        )

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        await self._http.aclose()

    async def take(self, hold: EmbeddingsHold) -> None:
        answer = await self._post(_PATH, hold)
        if answer.status_code == QUOTA_EXCEEDED.status:
            raise _no_room(answer)
        if not answer.is_success:
            raise HoldsUnavailable(f"the gateway answered {answer.status_code}")

    async def end(self, hold_id: str, spent: Sequence[SpentEvent]) -> None:
        answer = await self._post(f"{_PATH}/{hold_id}/end", EmbeddingsHoldEnd(spent=list(spent)))
        if not answer.is_success:
            raise HoldsUnavailable(f"the gateway answered {answer.status_code}")

    async def _post(self, path: str, body: Contract) -> httpx.Response:
        try:
            return await self._http.post(path, content=body.to_json(), headers=_JSON)
        except httpx.HTTPError as error:
            raise HoldsUnavailable(type(error).__name__) from error


def _no_room(answer: httpx.Response) -> NoRoom:
    try:
        problem = orjson.loads(answer.content)
        return NoRoom(Meter(problem["meter"]), problem, answer.headers.get("Retry-After"))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return NoRoom(Meter.EMBEDDINGS)


# A query is embedded once more when the model turns out to be another one than before.
_EMBEDDINGS = 2
_LIVES_SECONDS = 600


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
