"""Indexes a document: prepares it, embeds its chunks in batches, writes them invisibly, and commits them in one step.

Each indexing run writes its chunks under a generation of its own. Searches return only the generation in the document's
record, so nothing is found of a run that was killed or superseded, or whose document was deleted.
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import orjson

from services.rag.indexing.file_types import DocumentType, FileRejected, FileType
from services.rag.indexing.prepared_document import PreparedChunk, PreparedDocument
from services.rag.indexing.preparer import Preparer
from services.rag.search.embedding_holds import HoldsUnavailable, NoRoom, RunHolds
from services.rag.search.embeddings import Embeddings, searchable
from services.rag.search.vector_index import VectorIndex
from services.rag.store import FAILED, INDEXED, PENDING, IndexRow, RagStore, Space, from_now
from shared.contracts.contract import derived_id, format_utc, new_id, now_utc
from shared.contracts.documents import DocumentIndexed
from shared.contracts.quota import SpentEvent
from shared.contracts.usage import UsageRecorded
from shared.llm.client import ModelUsage
from shared.llm.errors import ModelError, ModelUnavailable
from shared.observability.logs import get_logger
from shared.privacy.sealing import Vault

BATCH_TEXTS = 128
LEASE_SECONDS = 45
BATCH_SECONDS = 30
ATTEMPTS = 5

log = get_logger(__name__)


class Announcements(Protocol):
    """Publishes events about documents, through an outbox. Repeated events have no effect."""

    async def indexed(self, fact: DocumentIndexed, event_id: str) -> None: ...

    async def used(self, fact: UsageRecorded) -> None: ...


class Superseded(Exception):
    """The document was deleted, or another run indexes it: the rows of this run must be removed."""


@dataclass
class _Run:
    record: dict[str, Any]
    generation: str
    space: Space | None = None
    embedded: int = 0
    batches: int = 0


class Indexing:
    """Indexes submitted documents, each once, however often it is submitted."""

    def __init__(
        self,
        *,
        store: RagStore,
        index: VectorIndex,
        preparer: Preparer,
        embeddings: Embeddings,
        vault: Vault,
        announcements: Announcements,
        runs: RunHolds,
    ) -> None:
        self._store = store
        self._index = index
        self._preparer = preparer
        self._embeddings = embeddings
        self._vault = vault
        self._announcements = announcements
        self._runs = runs

    async def index(self, tenant_id: str, document_id: str) -> None:
        """Indexes a document; it is indexed, failed, or during an outage of the model still pending afterwards.

        Does nothing for a document that is deleted, finished, or leased by another run. Raises StorageUnavailable,
        IndexUnavailable and HoldsUnavailable, after which the call may be repeated.
        """
        record = await self._store.document(tenant_id, document_id)
        if record is None:
            return
        if not self._is_due(record):
            await self._announce(record)
            return
        claimed = await self._store.documents.find_one_and_update(
            {"_id": document_id, "tenantId": tenant_id, "status": record["status"], "leaseUntil": {"$lt": from_now(0)}},
            {"$set": {"leaseUntil": from_now(LEASE_SECONDS)}},
        )
        if claimed is None:
            return
        async with self._lease(claimed):
            await self._index_claimed(claimed)

    def _is_due(self, record: dict[str, Any]) -> bool:
        """Whether a document is pending, or indexed with vectors of a model that is no longer in use."""
        if record["status"] == PENDING:
            return True
        live = self._embeddings.live_space
        return record["status"] == INDEXED and live is not None and record["space"] != live.key

    @contextlib.asynccontextmanager
    async def _lease(self, record: dict[str, Any]) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self._store.documents.update_one({"_id": record["_id"]}, {"$set": {"leaseUntil": ""}})

    async def _index_claimed(self, record: dict[str, Any]) -> None:
        run = _Run(record, new_id())
        try:
            prepared = await self._prepare(record)
            await self._runs.begin(record, run.generation)
            await self._runs.take(record, run.generation, [_embedded_text(chunk) for chunk in prepared.chunks])
            await self._write(run, prepared)
            await self._commit(run, prepared)
        except Superseded:
            await self._undo(run)
            return
        except FileRejected as rejected:
            await self._fail(run, rejected.detail)
        except NoRoom as exhausted:
            await self._fail(run, str(exhausted))
        except HoldsUnavailable:
            await self._undo(run)
            raise
        except ModelUnavailable as error:
            await self._record_usage(run, error.usage)
            await self._undo(run)
            log.warning("indexing_waits_for_model", document_id=record["_id"])
            return
        except ModelError as error:
            await self._record_usage(run, error.usage)
            await self._after_model_error(run)
        ended = await self._store.document(record["tenantId"], record["_id"])
        if ended is not None:
            await self._announce(ended)

    async def _prepare(self, record: dict[str, Any]) -> PreparedDocument:
        data = await self._store.read_bytes(record["_id"], record["size"])
        if len(data) != record["size"]:
            raise Superseded
        file_type = FileType(DocumentType(record["type"]), record["encoding"])
        return await self._preparer.prepare(data, file_type, record["title"])

    async def _write(self, run: _Run, prepared: PreparedDocument) -> None:
        for start in range(0, len(prepared.chunks), BATCH_TEXTS):
            await self._renew_lease(run)
            batch = prepared.chunks[start : start + BATCH_TEXTS]
            vectors = await self._embeddings.of(
                run.record["tenantId"],
                [_embedded_text(chunk) for chunk in batch],
                operation="index",
                deadline=now_utc() + timedelta(seconds=BATCH_SECONDS),
                document_id=run.record["_id"],
            )
            await self._record_usage(run, vectors.usage)
            await vectors.kept
            assert vectors.space is not None  # noqa: S101 -- a batch has texts, and texts have a space
            if run.space is None:
                run.space = vectors.space
                await self._store.add_space(run.record["tenantId"], run.space)
            elif run.space != vectors.space:
                raise Superseded  # the model changed in the middle of a document
            rows = [self._row(run, prepared, number, chunk) for number, chunk in enumerate(batch, start)]
            await self._index.add(run.record["tenantId"], run.space, rows, vectors.vectors)

    def _row(self, run: _Run, prepared: PreparedDocument, number: int, chunk: PreparedChunk) -> IndexRow:
        values = prepared.title_values | chunk.values
        return IndexRow(
            chunk_id=derived_id(run.record["_id"], str(number)),
            document_id=run.record["_id"],
            generation=run.generation,
            title=prepared.title,
            context=chunk.context,
            text=chunk.text,
            search_text=searchable(f"{prepared.title}\n{chunk.context}\n{chunk.text}"),
            sealed_pii=seal_values(self._vault, values, run.record["tenantId"], run.record["_id"]),
            injections=chunk.injections,
        )

    async def _renew_lease(self, run: _Run) -> None:
        renewed = await self._store.documents.update_one(
            {"_id": run.record["_id"], "status": run.record["status"], "generation": run.record["generation"]},
            {"$set": {"leaseUntil": from_now(LEASE_SECONDS)}},
        )
        if not renewed:
            raise Superseded

    async def _commit(self, run: _Run, prepared: PreparedDocument) -> None:
        """Makes this run's rows visible and all earlier ones invisible, in one update."""
        assert run.space is not None  # noqa: S101 -- a prepared document has chunks
        committed = await self._store.documents.update_one(
            {"_id": run.record["_id"], "status": run.record["status"], "generation": run.record["generation"]},
            {
                "$set": {
                    "status": INDEXED,
                    "generation": run.generation,
                    "space": run.space.key,
                    "chunks": len(prepared.chunks),
                    "embeddings": run.embedded,
                    "injections": prepared.injections,
                    "error": None,
                    "indexedAt": format_utc(now_utc()),
                }
            },
        )
        if not committed:
            raise Superseded
        for space in await self._store.spaces(run.record["tenantId"]):
            await self._index.delete_document(run.record["tenantId"], space, run.record["_id"], keep=run.generation)
        await self._runs.end_all(run.record["_id"])

    async def _after_model_error(self, run: _Run) -> None:
        await self._undo(run)
        failed = await self._store.documents.find_one_and_update({"_id": run.record["_id"]}, {"$inc": {"attempts": 1}})
        if failed is not None and failed["attempts"] >= ATTEMPTS:
            await self._fail(run, "The embedding model could not embed this document.")

    async def _fail(self, run: _Run, detail: str) -> None:
        await self._undo(run)
        await self._store.documents.update_one(
            {"_id": run.record["_id"], "status": PENDING}, {"$set": {"status": FAILED, "error": detail, "chunks": 0}}
        )

    async def _undo(self, run: _Run) -> None:
        """Removes the rows of a run that is not committed, and all content of a document deleted meanwhile."""
        if run.space is not None:
            await self._index.delete_generation(run.record["tenantId"], run.space, run.generation)
        await self._runs.end(run.generation)
        if await self._store.document(run.record["tenantId"], run.record["_id"]) is None:
            await self._store.delete_content(run.record["tenantId"], run.record["_id"])

    async def _record_usage(self, run: _Run, usage: ModelUsage | None) -> None:
        """Records the usage of a batch at once, since it counts even when the run is killed later."""
        run.batches += 1
        if usage is None or not (usage.embeddings or usage.tokens_in or usage.tokens_out):
            return
        run.embedded += usage.embeddings
        event_id = derived_id(run.generation, "index", str(run.batches))
        await self._announcements.used(
            UsageRecorded(
                event_id=event_id,
                tenant_id=run.record["tenantId"],
                component="rag",
                operation="index",
                tokens_in=usage.tokens_in,
                tokens_out=usage.tokens_out,
                embeddings=usage.embeddings,
                cost_nano_usd=usage.cost_nano_usd,
                latency_ms=usage.latency_ms,
                model=usage.model,
                period=run.record["period"],
                occurred_at=now_utc(),
            )
        )
        # After the event is in the outbox: the hold waits for every event that is added to it.
        tokens = usage.tokens_in + usage.tokens_out
        spent = SpentEvent(event_id=event_id, embeddings=usage.embeddings, tokens=tokens)
        await self._runs.add_spent(run.generation, spent)

    async def _announce(self, record: dict[str, Any]) -> None:
        if record["status"] not in (INDEXED, FAILED):
            return
        fact = DocumentIndexed(
            document_id=record["_id"],
            tenant_id=record["tenantId"],
            status=record["status"],
            chunks=record["chunks"],
            embeddings=record["embeddings"],
            error=record["error"],
            occurred_at=now_utc(),
        )
        await self._announcements.indexed(fact, derived_id(record["_id"], record["status"], record["generation"]))


def _embedded_text(chunk: PreparedChunk) -> str:
    return searchable(f"{chunk.context}\n{chunk.text}")


def seal_values(vault: Vault, values: dict[str, str], tenant_id: str, document_id: str) -> str:
    """A chunk's placeholder values as the JSON of a SealedText, bound to its document; empty without any."""
    if not values:
        return ""
    return vault.seal(orjson.dumps(values).decode(), tenant_id=tenant_id, subject_id=document_id).model_dump_json()
