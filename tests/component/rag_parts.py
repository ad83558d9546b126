"""rag's use cases on a real store, index and embedding model, without broker and HTTP."""

import base64
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import wordllama
from pydantic import SecretStr

from services.rag.documents.documents import Documents, Upload
from services.rag.documents.recorded_outputs import RecordedOutputs
from services.rag.documents.sweep import Sweep
from services.rag.indexing.index import Indexing
from services.rag.indexing.preparer import Preparer
from services.rag.search.calibration import Calibrations
from services.rag.search.embedding_holds import EmbeddingHolds, RunHolds
from services.rag.search.embeddings import Embeddings
from services.rag.search.retrieve import Retrieval
from services.rag.search.search import HybridSearch
from services.rag.search.vector_index import VectorIndex
from services.rag.store import RagStore
from shared.contracts.contract import new_id
from shared.contracts.documents import DocumentIndexed, DocumentSubmitted
from shared.contracts.quota import EmbeddingsHold, SpentEvent
from shared.contracts.upgrade_tasks import ConversationMessage, Stage, TaskOptions, UpgradeTask
from shared.contracts.usage import UsageRecorded
from shared.llm.client import Embedded, ModelUsage
from shared.llm.errors import ModelError
from shared.messaging.publish.outbox import outbox_collection
from shared.messaging.publish.producer import EventProducer
from shared.messaging.settings import KafkaSettings
from shared.privacy.sealing import Vault
from shared.privacy.settings import PrivacySettings
from shared.service.ledger_client import LedgerClient
from shared.storage.sqlite import SqliteDatabase

VAULT_KEY = base64.b64encode(os.urandom(32)).decode()


@lru_cache(maxsize=1)
def _wordllama() -> Any:
    return wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)


class LocalEmbeddings:
    """Real embeddings, computed in this process. `error` makes calls fail; `texts` holds the embedded texts."""

    def __init__(self, model: str = "offline-embedding") -> None:
        self.model = model
        self.texts: list[str] = []
        self.calls = 0
        self.error: type[ModelError] | None = None

    async def embed(self, texts: Sequence[str], *, operation: str, deadline: datetime) -> Embedded:
        self.calls += 1
        if self.error is not None:
            raise self.error("The model is out.", ModelUsage(self.model))
        self.texts += texts
        vectors = _wordllama().embed(list(texts), norm=True).tolist()
        usage = ModelUsage(self.model, tokens_in=len(" ".join(texts).split()), embeddings=len(texts), offline=True)
        return Embedded(vectors, usage)


@dataclass
class RecordingAnnouncements:
    """Records the events that would go to the outbox."""

    indexed_facts: dict[str, DocumentIndexed] = field(default_factory=dict)
    usage: dict[str, UsageRecorded] = field(default_factory=dict)

    async def indexed(self, fact: DocumentIndexed, event_id: str) -> None:
        self.indexed_facts.setdefault(event_id, fact)

    async def used(self, fact: UsageRecorded) -> None:
        self.usage.setdefault(fact.event_id, fact)


class UnlimitedHolds:
    """Grants every hold."""

    async def take(self, hold: EmbeddingsHold) -> None: ...

    async def end(self, hold_id: str, spent: Sequence[SpentEvent]) -> None: ...


class RagParts:
    """All parts between the inboxes and the stores. `submitted` lists the submitted documents."""

    def __init__(self, folder: Path, model: LocalEmbeddings | None = None, holds: EmbeddingHolds | None = None) -> None:
        self.folder = folder
        self.database = SqliteDatabase(folder / "rag.sqlite3")
        self.vault = Vault.from_settings(PrivacySettings(vault_key=SecretStr(VAULT_KEY)))
        self.store = RagStore(self.database)
        self.index = VectorIndex(str(folder / "lancedb"))
        self.model = model or LocalEmbeddings()
        self.embeddings = Embeddings(self.model, self.store.embeddings, self.vault, "configured-model")
        self.preparer = Preparer(check_seconds=30, prepare_seconds=60, processes=2)
        self.submitted: list[DocumentSubmitted] = []
        self.facts = RecordingAnnouncements()
        self.documents = Documents(self.store, self.index, self.preparer, self._submit)
        self.runs = RunHolds(self.store, self.embeddings, holds or UnlimitedHolds())
        self.indexing = Indexing(
            store=self.store,
            index=self.index,
            preparer=self.preparer,
            embeddings=self.embeddings,
            vault=self.vault,
            announcements=self.facts,
            runs=self.runs,
        )
        self.calibrations = Calibrations(self.model, self.store.calibrations)
        self.search = HybridSearch(self.store, self.index, self.embeddings, self.calibrations)
        self.retrieval = Retrieval(self.search, self.vault, query_seconds=10)
        self.outputs = RecordedOutputs(
            self.database.collection(outbox_collection("outputs")),
            EventProducer(KafkaSettings(), source="rag"),
            LedgerClient("http://127.0.0.1:9", "token"),
            self.store,
            self.vault,
        )
        self.sweep = Sweep(
            store=self.store,
            index=self.index,
            documents=self.documents,
            embeddings=self.embeddings,
            outputs=self.outputs,
            runs=self.runs,
            resubmit_seconds=60,
            give_up_seconds=3600,
            output_seconds=3600,
            retention_seconds=86_400,
        )

    async def _submit(self, submitted: DocumentSubmitted) -> None:
        self.submitted.append(submitted)

    async def add(self, tenant_id: str, text: str | bytes, title: str = "Handbook", filename: str = "a.md") -> str:
        """Uploads and indexes a document; returns its id."""
        data = text.encode() if isinstance(text, str) else text
        view = await self.documents.add(Upload(tenant_id, data, title, filename))
        await self.indexing.index(tenant_id, view.id)
        return view.id

    async def record(self, document_id: str) -> dict[str, Any]:
        record = await self.store.documents.get(document_id)
        assert record is not None
        return record

    async def find(self, tenant_id: str, query: str, min_score: float = 0.0) -> list[tuple[str, float, str]]:
        """Returns document id, score and redacted text of each hit, best first."""
        deadline = datetime.now(UTC) + timedelta(seconds=10)
        result = await self.search.search(tenant_id, [query], top_k=5, min_score=min_score, deadline=deadline)
        return [(found.row.document_id, found.score, found.row.text) for found in result.found]


@asynccontextmanager
async def rag_parts(
    folder: Path, model: LocalEmbeddings | None = None, holds: EmbeddingHolds | None = None
) -> AsyncIterator[RagParts]:
    parts = RagParts(folder, model, holds)
    await parts.database.start()
    try:
        yield parts
    finally:
        await parts.calibrations.stop(1)
        await parts.index.stop(1)
        await parts.database.stop(1)


def task_for(
    tenant_id: str,
    prompt: str,
    history: Sequence[tuple[str, str]] = (),
    *,
    counts: dict[str, int] | None = None,
    options: TaskOptions | None = None,
) -> UpgradeTask:
    """A task for the retrieve stage."""
    now = datetime.now(UTC)
    return UpgradeTask(
        upgrade_id=new_id(),
        tenant_id=tenant_id,
        period="2026-11",
        created_at=now,
        deadline=now + timedelta(seconds=30),
        user_prompt=prompt,
        conversation_history=[ConversationMessage(role=role, content=text) for role, text in history],
        options=options or TaskOptions(),
        placeholder_counts=counts or {},
        itinerary=[Stage.RAG, Stage.UPGRADER],
    )
