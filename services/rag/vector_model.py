"""What the vector index holds and finds."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Space:
    """Vectors that can be compared with each other: one model, one dimension."""

    model: str
    dimension: int

    @property
    def key(self) -> str:
        return f"{self.model}/{self.dimension}"


@dataclass(frozen=True)
class IndexRow:
    """One chunk as it is indexed. Texts are redacted; `sealed_pii` is the JSON of a SealedText or empty.

    `generation` names the indexing run that wrote it; a document shows only the generation it has committed.
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
    """A chunk that a search found: `cosine` is None without a query vector, `bm25` 0 when no word was found."""

    row: IndexRow
    cosine: float | None
    bm25: float


def table_name(tenant_id: str, space: Space) -> str:
    """The table of one tenant's chunks in one embedding space."""
    tenant = hashlib.sha256(tenant_id.encode()).hexdigest()[:40]
    model = hashlib.sha256(space.model.encode()).hexdigest()[:12]
    return f"chunks_{tenant}_{model}_{space.dimension}"
