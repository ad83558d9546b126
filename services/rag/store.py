"""rag's collections in the document store, and the types that the store and the vector index share."""

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from shared.contracts.contract import format_utc, now_utc
from shared.storage.documents import Collection, CollectionSpec, Database, Index

RECEIVING, PENDING, INDEXED, FAILED, DELETED = "receiving", "pending", "indexed", "failed", "deleted"
SHOWN = (PENDING, INDEXED, FAILED)

_PIECE_BYTES = 512 * 1024
_PIECES_AT_ONCE = 8

_DOCUMENTS = CollectionSpec(
    "documents", (Index(("tenantId", "_id")), Index(("tenantId", "status")), Index(("status", "submittedAt")))
)
_BYTES = CollectionSpec("document_bytes", (Index(("documentId",)),))
_EMBEDDINGS = CollectionSpec(
    "embeddings",
    (
        Index(("tenantId", "documentId")),
        Index(("documentId", "createdAt")),
        Index(("upgradeId",), only_when_present="upgradeId"),
    ),
)
_RUNS = CollectionSpec("index_runs", (Index(("documentId",)), Index(("startedAt",))))
_SPACES = CollectionSpec("spaces", (Index(("tenantId",)),))
_CALIBRATIONS = CollectionSpec("calibrations")


@dataclass(frozen=True)
class Space:
    """An embedding space: vectors of one model and dimension, which can be compared with each other."""

    model: str
    dimension: int

    @property
    def key(self) -> str:
        return f"{self.model}/{self.dimension}"


@dataclass(frozen=True)
class IndexRow:
    """One chunk in the vector index. Texts are redacted; `sealed_pii` is the JSON of a SealedText, or empty.

    `generation` is the id of the indexing run that wrote the row. Only rows of the generation in the document's record
    are visible.
    """

    chunk_id: str
    document_id: str
    generation: str
    title: str
    context: str
    text: str
    search_text: str
    sealed_pii: str
    injections: int


@dataclass(frozen=True)
class Hit:
    """A chunk that matches a search. `cosine` is None without a query vector, `bm25` is 0 without a common word."""

    row: IndexRow
    cosine: float | None
    bm25: float


class RagStore:
    """Reads and writes rag's collections. Every method may raise StorageUnavailable."""

    def __init__(self, database: Database) -> None:
        self.documents: Collection = database.collection(_DOCUMENTS)
        self.embeddings: Collection = database.collection(_EMBEDDINGS)
        self.runs: Collection = database.collection(_RUNS)
        self.calibrations: Collection = database.collection(_CALIBRATIONS)
        self._bytes = database.collection(_BYTES)
        self._spaces = database.collection(_SPACES)

    async def document(self, tenant_id: str, document_id: str) -> dict[str, Any] | None:
        """The record of a tenant's document; None when there is none, or it is deleted or still being received."""
        record = await self.documents.get(document_id)
        if record is None or record["tenantId"] != tenant_id or record["status"] not in SHOWN:
            return None
        return record

    async def has_documents(self, tenant_id: str) -> bool:
        """Whether the tenant has an indexed document."""
        return await self.documents.find_one({"tenantId": tenant_id, "status": INDEXED}) is not None

    async def visible_generations(self, tenant_id: str, document_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Maps the visible generations of the tenant's indexed documents to the documents' records."""
        records = await self.documents.get_many(list(dict.fromkeys(document_ids)))
        return {
            record["generation"]: record
            for record in records
            if record["tenantId"] == tenant_id and record["status"] == INDEXED and record["generation"]
        }

    async def write_bytes(self, tenant_id: str, document_id: str, data: bytes) -> None:
        """Stores the bytes of an upload."""
        pieces = [data[start : start + _PIECE_BYTES] for start in range(0, len(data), _PIECE_BYTES)]
        for start in range(0, len(pieces), _PIECES_AT_ONCE):
            await self._bytes.insert_many_if_absent(
                [
                    {
                        "_id": _piece_id(document_id, number),
                        "tenantId": tenant_id,
                        "documentId": document_id,
                        "data": base64.b64encode(piece).decode(),
                    }
                    for number, piece in enumerate(pieces[start : start + _PIECES_AT_ONCE], start)
                ]
            )

    async def read_bytes(self, document_id: str, size: int) -> bytes:
        """Returns the bytes of an upload; fewer than `size` when it is being deleted."""
        ids = [_piece_id(document_id, number) for number in range(-(-size // _PIECE_BYTES))]
        data = bytearray()
        for start in range(0, len(ids), _PIECES_AT_ONCE):
            for piece in await self._bytes.get_many(ids[start : start + _PIECES_AT_ONCE]):
                data += base64.b64decode(piece["data"])
        return bytes(data)

    async def delete_content(self, tenant_id: str, document_id: str) -> None:
        """Deletes a document's bytes and cached embeddings; its record and its rows in the index remain."""
        await self._bytes.delete_many({"documentId": document_id})
        await self.embeddings.delete_many({"tenantId": tenant_id, "documentId": document_id})

    async def add_space(self, tenant_id: str, space: Space) -> None:
        """Records that the tenant has a table for `space`. Must precede the first write to the table."""
        await self._spaces.insert_if_absent(
            {
                "_id": table_name(tenant_id, space),
                "tenantId": tenant_id,
                "model": space.model,
                "dimension": space.dimension,
                "createdAt": format_utc(now_utc()),
            }
        )

    async def spaces(self, tenant_id: str) -> list[Space]:
        """The tenant's embedding spaces; more than one after a change of the embedding model."""
        found = await self._spaces.find({"tenantId": tenant_id}, limit=20)
        return [Space(record["model"], record["dimension"]) for record in found]

    async def any_space(self) -> bool:
        """Whether any tenant has a table in the index."""
        return await self._spaces.find_one({}) is not None


def table_name(tenant_id: str, space: Space) -> str:
    """The name of the table with a tenant's chunks in one embedding space."""
    tenant = hashlib.sha256(tenant_id.encode()).hexdigest()[:40]
    model = hashlib.sha256(space.model.encode()).hexdigest()[:12]
    return f"chunks_{tenant}_{model}_{space.dimension}"


def ago(seconds: float) -> str:
    """The time that many seconds ago, in the stored format."""
    return from_now(-seconds)


def from_now(seconds: float) -> str:
    """The time that many seconds ahead, in the stored format."""
    return format_utc(now_utc() + timedelta(seconds=seconds))


def _piece_id(document_id: str, number: int) -> str:
    return f"{document_id}:{number:05d}"
