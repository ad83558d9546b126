"""Hybrid search in one tenant's documents: by vector and by words, in visible chunks only."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.rag.search.calibration import Calibrations, Scale
from services.rag.search.embeddings import Embeddings, Vectors, searchable
from services.rag.search.scoring import Candidate, scores
from services.rag.search.vector_index import VectorIndex
from services.rag.store import Hit, IndexRow, RagStore, Space
from shared.llm.client import ModelUsage
from shared.llm.errors import ModelError
from shared.observability.logs import get_logger

# The minimum score of a search by words alone, whose lower scores are mostly wrong.
WORDS_ALONE_MIN_SCORE = 0.35
_CANDIDATES_PER_RESULT = 4
_MIN_CANDIDATES = 24
_MAX_ROUNDS = 3

log = get_logger(__name__)


@dataclass(frozen=True)
class Found:
    """A visible chunk, its score (0..1), and the title of its document as uploaded."""

    row: IndexRow
    score: float
    title: str


@dataclass(frozen=True)
class SearchResult:
    """`usage` is None without a model call; `by_words`: the model was unavailable, so only words were searched."""

    found: list[Found]
    usage: ModelUsage | None = None
    by_words: bool = False
    all_cached: bool = False


class HybridSearch:
    """Searches a tenant's documents."""

    def __init__(self, store: RagStore, index: VectorIndex, embeddings: Embeddings, calibrations: Calibrations) -> None:
        self._store = store
        self._index = index
        self._embeddings = embeddings
        self._calibrations = calibrations

    async def search(
        self,
        tenant_id: str,
        queries: Sequence[str],
        *,
        top_k: int,
        min_score: float,
        deadline: datetime,
        upgrade_id: str = "",
    ) -> SearchResult:
        """Returns the best `top_k` chunks with at least `min_score` for any of the queries, best first.

        The queries are redacted texts; their cached vectors are erased with `upgrade_id`. While the model is
        unavailable, only words are searched. Raises StorageUnavailable and IndexUnavailable.
        """
        queries = [query for query in map(searchable, queries) if query]
        if not queries:
            return SearchResult([])
        has_documents, spaces = await asyncio.gather(
            self._store.has_documents(tenant_id), self._store.spaces(tenant_id)
        )
        if not has_documents:
            return SearchResult([])
        vectors, usage = await self._vectors(tenant_id, queries, deadline, upgrade_id)
        by_words = vectors is None
        limit = max(_CANDIDATES_PER_RESULT * top_k, _MIN_CANDIDATES)
        try:
            best = await self._best(tenant_id, spaces, queries, vectors, limit, deadline)
        finally:
            if vectors is not None:
                await vectors.kept
        min_score = max(min_score, WORDS_ALONE_MIN_SCORE) if by_words else min_score
        ranked = sorted(best.values(), key=lambda found: (-found.score, found.row.chunk_id))
        chosen = _distinct([found for found in ranked if found.score > 0 and found.score >= min_score])[:top_k]
        all_cached = not by_words and usage is None
        return SearchResult(chosen, usage, by_words, all_cached)

    async def _best(
        self,
        tenant_id: str,
        spaces: Sequence[Space],
        queries: Sequence[str],
        vectors: Vectors | None,
        limit: int,
        deadline: datetime,
    ) -> dict[str, Found]:
        """Chunks by id, each with its best score for any query in any space."""
        live_space = vectors.space if vectors is not None else None
        scale = None
        if live_space is not None and live_space in spaces:
            scale = await self._calibrations.scale_of(live_space, deadline=deadline)
        searches = [
            self._search_one(tenant_id, space, query, _vector_for(vectors, number, space), scale, limit)
            for space in spaces
            for number, query in enumerate(queries)
        ]
        best: dict[str, Found] = {}
        for results in await asyncio.gather(*searches):
            for found in results:
                known = best.get(found.row.chunk_id)
                if known is None or found.score > known.score:
                    best[found.row.chunk_id] = found
        return best

    async def _vectors(
        self, tenant_id: str, queries: Sequence[str], deadline: datetime, upgrade_id: str
    ) -> tuple[Vectors | None, ModelUsage | None]:
        try:
            vectors = await self._embeddings.of(
                tenant_id, queries, operation="retrieve", deadline=deadline, upgrade_id=upgrade_id
            )
        except ModelError as error:
            log.warning("query_not_embedded", error=error.code)
            return None, error.usage
        return vectors, vectors.usage

    async def _search_one(
        self,
        tenant_id: str,
        space: Space,
        query: str,
        vector: list[float] | None,
        scale: Scale | None,
        limit: int,
    ) -> list[Found]:
        """Searches one table, again without invisible generations when they displaced visible rows."""
        hidden: set[str] = set()
        hits: list[Hit] = []
        records: dict[str, dict[str, Any]] = {}
        for _ in range(_MAX_ROUNDS):
            hits = await self._index.search(
                tenant_id, space, vector=vector, text=query, limit=limit, without_generations=hidden
            )
            # Read after the search, so that a document deleted meanwhile is not returned.
            records = await self._store.visible_generations(tenant_id, (hit.row.document_id for hit in hits))
            invisible = {hit.row.generation for hit in hits} - records.keys()
            hits = [hit for hit in hits if hit.row.generation in records]
            if not invisible or len(hits) >= limit:
                break
            hidden |= invisible
        calibration = scale.calibration_for(query) if scale is not None else None
        candidates = [Candidate(hit.row.search_text, hit.cosine, hit.bm25) for hit in hits]
        return [
            Found(hit.row, round(score, 4), records[hit.row.generation]["title"])
            for hit, score in zip(hits, scores(query, candidates, calibration), strict=True)
        ]


def _vector_for(vectors: Vectors | None, number: int, space: Space) -> list[float] | None:
    """The query's vector, or None when it is not comparable with those of the table."""
    return vectors.vectors[number] if vectors is not None and vectors.space == space else None


def _distinct(ranked: list[Found]) -> list[Found]:
    """Drops repeated texts, as of a file that was uploaded twice."""
    distinct: dict[str, Found] = {}
    for found in ranked:
        distinct.setdefault(found.row.text, found)
    return list(distinct.values())
