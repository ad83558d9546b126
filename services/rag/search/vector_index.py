"""The vector index in LanceDB: one table of chunks per tenant and embedding space, searched by vector and by words."""

import asyncio
import importlib
import os
import warnings
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from cachetools import LRUCache

from services.rag.search.scoring import MAX_QUERY_WORDS
from services.rag.store import Hit, IndexRow, Space, table_name
from shared.contracts.contract import is_uuid
from shared.observability.logs import get_logger

T = TypeVar("T")

_FIELDS = [
    "chunk_id",
    "document_id",
    "generation",
    "title",
    "context",
    "text",
    "search_text",
    "sealed_pii",
    "injections",
]
_OPEN_TABLES = 128
_SEARCHES_AT_ONCE = 32
_INDEX_CACHE_BYTES = 48 * 1024 * 1024
_METADATA_CACHE_BYTES = 16 * 1024 * 1024
_MAX_QUERY_CHARACTERS = 2_000

log = get_logger(__name__)

# Preparation processes are started with exec, so LanceDB's threads are never used across a fork.
warnings.filterwarnings("ignore", message="lancedb fork support is experimental", category=RuntimeWarning)


class IndexUnavailable(Exception):
    """The index cannot be read or written at the moment; the operation may be retried."""


class VectorIndex:
    """Reads and writes the index, a folder or an object store. Component.

    A table's name contains its tenant, so no query reads another tenant's chunks.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._connection: Any = None
        self._connecting = asyncio.Lock()
        self._tables: LRUCache[str, Any] = LRUCache(_OPEN_TABLES)
        self._opening = asyncio.Lock()
        self._grown: set[tuple[str, Space]] = set()
        self._searches = asyncio.Semaphore(_SEARCHES_AT_ONCE)

    async def start(self) -> None:
        """Opens nothing: LanceDB is loaded on first use, since a service without documents does not need its memory."""

    async def stop(self, grace_seconds: float) -> None:
        for table in self._tables.values():
            table.close()
        self._tables.clear()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def warm(self) -> None:
        """Loads LanceDB ahead of the first search. Raises IndexUnavailable."""
        await self._connect()

    async def add(
        self, tenant_id: str, space: Space, rows: Sequence[IndexRow], vectors: Sequence[Sequence[float]]
    ) -> None:
        """Appends rows with their vectors. Raises IndexUnavailable."""

        async def append(table: Any) -> None:
            await table.add(_arrow(rows, vectors, space.dimension))

        await self._on_table(tenant_id, space, append, create=True)
        self._grown.add((tenant_id, space))

    async def delete_document(self, tenant_id: str, space: Space, document_id: str, *, keep: str = "") -> None:
        """Deletes the rows of a document, except those of the generation `keep`. Raises IndexUnavailable."""
        where = f"document_id = {_literal(document_id)}" + (f" AND generation != {_literal(keep)}" if keep else "")
        await self._on_table(tenant_id, space, lambda table: table.delete(where))

    async def delete_generation(self, tenant_id: str, space: Space, generation: str) -> None:
        """Deletes the rows of one indexing run. Raises IndexUnavailable."""
        await self._on_table(tenant_id, space, lambda table: table.delete(f"generation = {_literal(generation)}"))

    async def search(
        self,
        tenant_id: str,
        space: Space,
        *,
        vector: Sequence[float] | None,
        text: str,
        limit: int,
        without_generations: Collection[str] = (),
    ) -> list[Hit]:
        """Returns the best `limit` chunks by cosine and the best `limit` by BM25, each chunk once, unordered.

        Raises IndexUnavailable.
        """
        where = ""
        if without_generations:
            where = f"generation NOT IN ({', '.join(map(_literal, sorted(without_generations)))})"

        async def query(table: Any) -> list[Hit]:
            by_vector, by_text = await asyncio.gather(
                _by_vector(table, vector, where, limit), _by_text(table, text, where, limit)
            )
            return _merged(by_vector, by_text, vector)

        async with self._searches:
            return await self._on_table(tenant_id, space, query) or []

    def take_grown(self) -> set[tuple[str, Space]]:
        """Returns the tables to which this process has added rows since the last call."""
        grown, self._grown = self._grown, set()
        return grown

    async def compact(self, tenant_id: str, space: Space, keep_versions: timedelta) -> None:
        """Merges small files, updates the word index and deletes versions older than `keep_versions`."""
        await self._on_table(tenant_id, space, lambda table: table.optimize(cleanup_older_than=keep_versions))

    async def purge(self, tenant_id: str, space: Space, keep_versions: timedelta) -> None:
        """Removes deleted rows from the files: rewrites the remaining rows, then deletes older versions.

        LanceDB only marks rows as deleted, and its word index keeps their words until it is rebuilt.
        """

        async def rewrite(table: Any) -> None:
            await table.update(updates_sql={"generation": "generation"})
            await table.create_index("search_text", config=_word_index(), replace=True)
            await table.optimize(cleanup_older_than=keep_versions)

        await self._on_table(tenant_id, space, rewrite)

    async def ping(self) -> None:
        """Raises IndexUnavailable when an index that was opened can no longer be listed."""
        if self._connection is not None:
            try:
                await self._connection.list_tables(limit=1)
            except Exception as error:
                raise IndexUnavailable(type(error).__name__) from error

    async def _connect(self) -> Any:
        async with self._connecting:
            if self._connection is None:
                try:
                    # LanceDB logs plain text, not JSON, and nothing useful below errors.
                    os.environ.setdefault("LANCE_LOG", "error")
                    lancedb = await asyncio.to_thread(importlib.import_module, "lancedb")
                    session = lancedb.Session(
                        index_cache_size_bytes=_INDEX_CACHE_BYTES, metadata_cache_size_bytes=_METADATA_CACHE_BYTES
                    )
                    self._connection = await lancedb.connect_async(
                        self._uri, read_consistency_interval=timedelta(0), session=session
                    )
                except Exception as error:
                    raise IndexUnavailable(type(error).__name__) from error
            return self._connection

    async def _on_table(
        self, tenant_id: str, space: Space, work: Callable[[Any], Awaitable[T]], *, create: bool = False
    ) -> T | None:
        """Runs `work` on the table, None without a table. After a failure, reopens the table and retries once."""
        name = table_name(tenant_id, space)
        for last in (False, True):
            table = await self._table(name, space.dimension, create)
            if table is None:
                return None
            try:
                return await work(table)
            except Exception as error:
                # Another process may have deleted the version that was read, or have written at the same time.
                self._tables.pop(name, None)
                if last:
                    log.warning("index_failed", error=type(error).__name__)
                    raise IndexUnavailable(type(error).__name__) from error
        return None

    async def _table(self, name: str, dimension: int, create: bool) -> Any:
        connection = await self._connect()
        async with self._opening:
            if name in self._tables:
                return self._tables[name]
            try:
                table = await self._open(connection, name, dimension, create)
            except Exception as error:
                raise IndexUnavailable(type(error).__name__) from error
            if table is not None:
                self._tables[name] = table
            return table

    @staticmethod
    async def _open(connection: Any, name: str, dimension: int, create: bool) -> Any:
        try:
            table = await connection.open_table(name)
        except (ValueError, FileNotFoundError) as error:
            if "not found" not in str(error).lower():
                raise
            if not create:
                return None
            table = await connection.create_table(name, schema=_schema(dimension), exist_ok=True)
        if not any("search_text" in index.columns for index in await table.list_indices()):
            await table.create_index("search_text", config=_word_index())
        return table


def _word_index() -> Any:
    from lancedb.index import FTS

    # ICU segments scripts without spaces; the English stemmer rarely changes words of other languages.
    return FTS(base_tokenizer="icu", language="English", stem=True, remove_stop_words=True, ascii_folding=True)


def _schema(dimension: int) -> Any:
    import pyarrow as pa

    fields = [pa.field(name, pa.int32() if name == "injections" else pa.string()) for name in _FIELDS]
    return pa.schema([*fields, pa.field("vector", pa.list_(pa.float32(), dimension))])


def _arrow(rows: Sequence[IndexRow], vectors: Sequence[Sequence[float]], dimension: int) -> Any:
    import numpy as np
    import pyarrow as pa

    flat = np.asarray(vectors, dtype=np.float32).reshape(-1)
    schema = _schema(dimension)
    columns = [pa.array([getattr(row, name) for row in rows], schema.field(name).type) for name in _FIELDS]
    columns.append(pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), dimension))
    return pa.Table.from_arrays(columns, schema=schema)


async def _by_vector(table: Any, vector: Sequence[float] | None, where: str, limit: int) -> list[dict[str, Any]]:
    if vector is None or not any(vector):
        return []
    query = table.query().nearest_to(list(vector)).distance_type("cosine").select([*_FIELDS, "_distance"])
    return await _rows(query, where, limit)


async def _by_text(table: Any, text: str, where: str, limit: int) -> list[dict[str, Any]]:
    wanted = " ".join(text[:_MAX_QUERY_CHARACTERS].split()[: 2 * MAX_QUERY_WORDS])
    if not any(map(str.isalnum, wanted)):
        return []
    query = table.query().nearest_to_text(wanted, columns=["search_text"]).select([*_FIELDS, "vector", "_score"])
    return await _rows(query, where, limit)


async def _rows(query: Any, where: str, limit: int) -> list[dict[str, Any]]:
    if where:
        query = query.where(where)
    found: list[dict[str, Any]] = await query.limit(limit).to_list()
    return found


def _merged(
    by_vector: list[dict[str, Any]], by_text: list[dict[str, Any]], vector: Sequence[float] | None
) -> list[Hit]:
    bm25 = {found["chunk_id"] + found["generation"]: float(found["_score"]) for found in by_text}
    hits: dict[str, Hit] = {}
    for found in by_vector:
        key = found["chunk_id"] + found["generation"]
        hits[key] = Hit(_row(found), 1.0 - float(found["_distance"]), bm25.get(key, 0.0))
    for found in by_text:
        key = found["chunk_id"] + found["generation"]
        if key not in hits:
            hits[key] = Hit(_row(found), None if vector is None else _cosine(vector, found["vector"]), bm25[key])
    return list(hits.values())


def _row(found: dict[str, Any]) -> IndexRow:
    return IndexRow(**{name: found[name] for name in _FIELDS})


def _cosine(left: Sequence[float], right: Sequence[float]) -> float:
    import numpy as np

    a, b = np.asarray(left, dtype=np.float32), np.asarray(right, dtype=np.float32)
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length else 0.0


def _literal(value: str) -> str:
    """An id as a literal of a filter expression. Raises ValueError unless it is a UUID, which prevents injection."""
    if not is_uuid(value):
        raise ValueError("not an id")
    return f"'{value}'"
