"""What indexing a document may use is held at the gateway before the first embedding, and ended with what it used."""

from collections.abc import Sequence
from typing import Any, Protocol

from services.rag.embeddings import Embeddings
from services.rag.store import RagStore
from shared.contracts.contract import format_utc, now_utc
from shared.contracts.plans import Meter
from shared.contracts.quota_http import EmbeddingsHold, SpentEvent
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
