"""Reserves a tenant's embeddings quota before texts are embedded, and settles the reservation afterwards.

The gateway keeps the quotas. A hold is taken there for the most that an indexing run or a search may use; when the work
is over, the hold ends with the usage events that replace it.
"""

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import orjson

from services.rag.search.embeddings import Embeddings, searchable
from services.rag.store import RagStore
from shared.contracts.contract import Contract, derived_id, format_utc, new_id, now_utc, period_of
from shared.contracts.problems import QUOTA_EXCEEDED
from shared.contracts.quota import EmbeddingsHold, EmbeddingsHoldEnd, Meter, SpentEvent
from shared.contracts.usage import UsageRecorded
from shared.llm.client import ModelUsage
from shared.messaging.errors import Transient
from shared.observability.logs import get_logger
from shared.service.internal_client import InternalClient

_PATH = "/internal/holds/embeddings"
# The gateway may have to rebuild a tenant's state first.
_GATEWAY_TIMEOUT_SECONDS = 12.0
_RUNS_PER_QUERY = 100
_TEXTS_PER_QUERY = 256
# A query is embedded twice when the model behind the name turns out to have changed.
_EMBEDDINGS_PER_SEARCH = 2
_SEARCH_HOLD_SECONDS = 600

log = get_logger(__name__)


class HoldsUnavailable(Transient):
    """The gateway cannot be reached or does not answer as expected."""


class NoRoom(Exception):
    """The tenant's quota is exhausted.

    The text is meant for the tenant; `problem` is the gateway's answer, `retry_after` its header in seconds.
    """

    def __init__(self, meter: Meter, problem: dict[str, Any] | None = None, retry_after: str | None = None) -> None:
        super().__init__(f"The {meter.value} left of this month's quota do not suffice for this document.")
        self.problem = problem or {}
        self.retry_after = retry_after


class EmbeddingHolds(Protocol):
    async def take(self, hold: EmbeddingsHold) -> None:
        """Takes a hold; the same id twice is one hold. Raises NoRoom and HoldsUnavailable."""

    async def end(self, hold_id: str, spent: Sequence[SpentEvent]) -> None:
        """Replaces the hold with what was used. Raises HoldsUnavailable."""


class GatewayHolds:
    """`EmbeddingHolds` over the gateway's internal HTTP. Component."""

    def __init__(self, gateway_url: str, internal_token: str) -> None:
        self._client = InternalClient(gateway_url, internal_token, timeout_seconds=_GATEWAY_TIMEOUT_SECONDS)

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        await self._client.stop(grace_seconds)

    async def take(self, hold: EmbeddingsHold) -> None:
        answer = await self._post(_PATH, hold)
        if answer.status_code == QUOTA_EXCEEDED.status:
            raise _no_room(answer)
        _require_success(answer)

    async def end(self, hold_id: str, spent: Sequence[SpentEvent]) -> None:
        _require_success(await self._post(f"{_PATH}/{hold_id}/end", EmbeddingsHoldEnd(spent=list(spent))))

    async def _post(self, path: str, body: Contract) -> httpx.Response:
        try:
            return await self._client.request("POST", path, body=body)
        except httpx.HTTPError as error:
            raise HoldsUnavailable(type(error).__name__) from error


class RunHolds:
    """Takes and ends the holds of indexing runs, one per run.

    A hold's id is the generation of its run. The run's record lists its usage events and stays in the store until the
    gateway has ended the hold.
    """

    def __init__(self, store: RagStore, embeddings: Embeddings, holds: EmbeddingHolds) -> None:
        self._runs = store.runs
        self._embeddings = embeddings
        self._holds = holds

    async def begin(self, record: dict[str, Any], generation: str) -> None:
        """Records a run and ends all earlier runs of the document, which the caller has leased."""
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
            await self._holds.take(_run_hold(record, generation, texts))
        except NoRoom:
            # Texts that an earlier run embedded come from the cache and use no quota.
            unknown = await self._unknown(record["tenantId"], texts)
            if len(unknown) == len(texts):
                raise
            await self._holds.take(_run_hold(record, generation, unknown))

    async def add_spent(self, generation: str, event: SpentEvent) -> None:
        """Adds a usage event to the run. The event must be in the outbox: the hold waits until the ledger has it."""
        await self._runs.update_one({"_id": generation}, {"$push": {"spent": {"$each": [event.to_document()]}}})

    async def end(self, generation: str) -> None:
        """Ends a run and its hold; while the gateway is unavailable, the run stays marked for `end_marked`."""
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
        """Ends all runs of a document."""
        for run in await self._runs.find({"documentId": document_id}, limit=_RUNS_PER_QUERY):
            await self.end(run["_id"])

    async def end_marked(self) -> None:
        """Ends the holds of runs that ended while the gateway was unavailable."""
        for run in await self._runs.find({"over": True}, limit=_RUNS_PER_QUERY):
            await self.end(run["_id"])

    async def _unknown(self, tenant_id: str, texts: Sequence[str]) -> list[str]:
        unknown: list[str] = []
        for start in range(0, len(texts), _TEXTS_PER_QUERY):
            unknown += await self._embeddings.unknown(tenant_id, texts[start : start + _TEXTS_PER_QUERY])
        return unknown


@dataclass
class SearchHold:
    """The hold of one search; its usage counts in the period in which the search began."""

    hold_id: str
    period: str
    spent: list[SpentEvent] = field(default_factory=list)

    def usage_event(self, tenant_id: str, used: ModelUsage) -> UsageRecorded:
        """The search's usage as an event for the ledger."""
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

    def add_spent(self, event: UsageRecorded) -> None:
        """Adds a usage event. The event must be in the outbox: the hold waits until the ledger has it."""
        tokens = event.tokens_in + event.tokens_out
        self.spent.append(SpentEvent(event_id=event.event_id, embeddings=event.embeddings, tokens=tokens))


class SearchHolds:
    """Takes and ends the holds of searches."""

    def __init__(self, embeddings: Embeddings, holds: EmbeddingHolds) -> None:
        self._embeddings = embeddings
        self._holds = holds

    @contextlib.asynccontextmanager
    async def held(self, tenant_id: str, query: str) -> AsyncIterator[SearchHold]:
        """Holds what embedding the query may use, for the time of the block; nothing for a query in the cache.

        Raises NoRoom, HoldsUnavailable and StorageUnavailable; the query must not be embedded then.
        """
        hold = SearchHold(new_id(), period_of(now_utc()))
        if not await self._embeddings.unknown(tenant_id, [searchable(query)]):
            yield hold
            return
        request = EmbeddingsHold(
            hold_id=hold.hold_id,
            tenant_id=tenant_id,
            period=hold.period,
            embeddings=_EMBEDDINGS_PER_SEARCH,
            tokens=_EMBEDDINGS_PER_SEARCH * _max_tokens(query),
            lives_seconds=_SEARCH_HOLD_SECONDS,
        )
        try:
            await self._holds.take(request)
        except HoldsUnavailable:
            # The gateway may have taken the hold although its answer was lost.
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
            # The gateway ends it by itself after `_SEARCH_HOLD_SECONDS`.
            log.warning("search_hold_not_ended", hold_id=hold.hold_id)


def _run_hold(record: dict[str, Any], generation: str, texts: Sequence[str]) -> EmbeddingsHold:
    return EmbeddingsHold(
        hold_id=generation,
        tenant_id=record["tenantId"],
        period=record["period"],
        embeddings=len(texts),
        tokens=sum(map(_max_tokens, texts)),
    )


def _max_tokens(text: str) -> int:
    """An upper bound: a token is at least one byte of its text."""
    return max(1, len(text.encode("utf-8", "replace")))


def _require_success(answer: httpx.Response) -> None:
    if not answer.is_success:
        raise HoldsUnavailable(f"the gateway answered {answer.status_code}")


def _no_room(answer: httpx.Response) -> NoRoom:
    try:
        problem = orjson.loads(answer.content)
        return NoRoom(Meter(problem["meter"]), problem, answer.headers.get("Retry-After"))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return NoRoom(Meter.EMBEDDINGS)
