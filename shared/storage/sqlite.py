"""The document port on SQLite: one durable file per service, which several processes may share."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import orjson

from shared.storage.document_semantics import (
    apply_update,
    check_each,
    check_update,
    check_upsert,
    document_for_upsert,
    matches,
)
from shared.storage.documents import (
    CollectionSpec,
    Document,
    DuplicateKey,
    Filter,
    Sort,
    StorageUnavailable,
    Update,
    require_id,
)
from shared.storage.sqlite_queries import IN_JSON_LIST, Table
from shared.storage.sqlite_threads import Insert, ReaderThread, SqliteThread, connect
from shared.storage.sqlite_writer import InlineWriter, WriterThread, insert_rows

_QUEUE_LIMIT = 4096
_UPDATE_CHUNK = 500
_JSON_OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
T = TypeVar("T")


class SqliteDatabase:
    """A SQLite file in WAL mode with full synchronisation. Each thread queues at most `queue_limit` operations."""

    def __init__(self, path: Path, *, queue_limit: int = _QUEUE_LIMIT) -> None:
        self._path = path
        self._queue_limit = queue_limit
        self._tables: dict[str, Table] = {}
        self._connections: _Connections | None = None

    def collection(self, spec: CollectionSpec) -> "SqliteCollection":
        if self._connections is not None:
            raise RuntimeError("collections must be declared before the database is started")
        table = Table(spec)
        table.definition()  # raises for an invalid spec
        self._tables[spec.name] = table
        return SqliteCollection(table, self._open_connections)

    async def start(self) -> None:
        definition = [statement for table in self._tables.values() for statement in table.definition()]
        connections = _Connections(self._path, self._queue_limit, definition)
        await connections.start()
        self._connections = connections

    async def stop(self, grace_seconds: float) -> None:
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.stop(grace_seconds)

    async def ping(self) -> None:
        connections = self._open_connections()
        if not connections.writer.is_alive:
            raise StorageUnavailable("the writer thread has ended")
        await connections.lookups.submit(lambda connection: connection.execute("SELECT 1").fetchone())

    def _open_connections(self) -> "_Connections":
        if self._connections is None:
            raise StorageUnavailable("the database is closed")
        return self._connections


class SqliteCollection:
    """A collection stored as one table. The port documents the methods."""

    def __init__(self, table: Table, connections: "Callable[[], _Connections]") -> None:
        self._table = table
        self._connections = connections

    async def get(self, id: str) -> Document | None:
        statement = self._table.select("body", " WHERE id = ?")
        try:
            return _first(self._connections().loop_reader, statement, (id,))
        except sqlite3.Error:
            # The reader thread may wait for a lock; the event loop must not.
            return await self._read(lambda connection: _first(connection, statement, (id,)))

    async def get_many(self, ids: Sequence[str]) -> list[Document]:
        if not ids:
            return []
        wanted = orjson.dumps(list(ids)).decode()
        statement = self._table.select("id, body", " WHERE id" + IN_JSON_LIST)

        def run(connection: sqlite3.Connection) -> list[Document]:
            found = dict(connection.execute(statement, (wanted,)).fetchall())
            return [orjson.loads(found[id]) for id in dict.fromkeys(ids) if id in found]

        return await self._read(run)

    async def insert(self, document: Document) -> None:
        row = self._row(document)
        await self._connections().insert(lambda connection: self._insert(connection, row), self._as_bulk(row))

    async def insert_if_absent(self, document: Document) -> tuple[Document, bool]:
        row = self._row(document)
        statement = self._table.select("body", " WHERE id = ?")

        def run(connection: sqlite3.Connection) -> tuple[Document, bool]:
            stored = _first(connection, statement, (row[0],))
            if stored is not None:
                return stored, False
            self._insert(connection, row)
            return document, True

        return await self._connections().insert(run, self._as_bulk(row, (document, True)))

    async def insert_many_if_absent(self, documents: Sequence[Document]) -> set[str]:
        if not documents:
            return set()
        rows: dict[str, tuple[str, str]] = {}
        for document in documents:
            rows.setdefault(require_id(document), self._row(document))
        ids = orjson.dumps(list(rows)).decode()
        existing = self._table.select("id", " WHERE id" + IN_JSON_LIST)

        def run(connection: sqlite3.Connection) -> set[str]:
            for (id,) in connection.execute(existing, (ids,)).fetchall():
                del rows[id]
            with _duplicate_keys_of(self._table):
                insert_rows(connection, self._table.name, list(rows.values()))
            return set(rows)

        return await self._write(run, many_statements=True)

    async def find(self, filter: Filter, sort: Sort = (), limit: int = 100) -> list[Document]:
        if limit < 1:
            raise ValueError("limit must be at least 1")
        where, parameters = self._table.where(filter)
        statement = self._table.select("body", f"{where}{self._table.order_by(sort, filter)} LIMIT ?")

        def run(connection: sqlite3.Connection) -> list[Document]:
            return [orjson.loads(body) for (body,) in connection.execute(statement, (*parameters, limit)).fetchall()]

        found: list[Document] = await self._connections().searches.submit(run)
        return found

    async def find_one(self, filter: Filter) -> Document | None:
        where, parameters = self._table.where(filter)
        statement = self._table.select("body", where + " LIMIT 1")
        found: Document | None = await self._connections().searches.submit(
            lambda connection: _first(connection, statement, parameters)
        )
        return found

    async def count(self, filter: Filter) -> int:
        where, parameters = self._table.where(filter)
        statement = self._table.select("count(*)", where)
        counted: int = await self._connections().searches.submit(
            lambda connection: connection.execute(statement, parameters).fetchone()[0]
        )
        return counted

    async def update_one(self, filter: Filter, update: Update, upsert: bool = False) -> int:
        return 0 if await self.find_one_and_update(filter, update, upsert) is None else 1

    async def find_one_and_update(self, filter: Filter, update: Update, upsert: bool = False) -> Document | None:
        check_update(update)
        if upsert:
            check_upsert(filter, update)
        where, parameters = self._table.where(filter)
        statement = self._table.select("rowid, body", where + " LIMIT 1")

        def run(connection: sqlite3.Connection) -> Document | None:
            match = connection.execute(statement, parameters).fetchone()
            if match is not None:
                document: Document = orjson.loads(match[1])
                self._update(connection, match[0], document, update)
                return document
            if not upsert:
                return None
            document = document_for_upsert(filter, update)
            self._insert(connection, self._row(document))
            return document

        return await self._write(run)

    async def update_many(self, filter: Filter, update: Update) -> int:
        check_update(update)
        where, parameters = self._table.where(filter)
        matching = self._table.select("rowid", where)
        bodies = self._table.select("rowid, body", " WHERE rowid" + IN_JSON_LIST)

        def run(connection: sqlite3.Connection) -> int:
            rowids = [rowid for (rowid,) in connection.execute(matching, parameters).fetchall()]
            for at in range(0, len(rowids), _UPDATE_CHUNK):
                chunk = orjson.dumps(rowids[at : at + _UPDATE_CHUNK]).decode()
                for rowid, body in connection.execute(bodies, (chunk,)).fetchall():
                    self._update(connection, rowid, orjson.loads(body), update)
            return len(rowids)

        return await self._write(run, many_statements=True)

    async def update_each(self, changes: Sequence[tuple[Filter, Update]], upsert: bool = False) -> None:
        """Reads, changes and writes the documents in chunks of some hundred, each chunk in one operation."""
        check_each(changes)
        chunks = [changes[at : at + _UPDATE_CHUNK] for at in range(0, len(changes), _UPDATE_CHUNK)]
        # Submitted together so that they can share a commit.
        await asyncio.gather(*(self._write(self._updates(chunk, upsert), many_statements=True) for chunk in chunks))

    def _updates(self, changes: Sequence[tuple[Filter, Update]], upsert: bool) -> Callable[[sqlite3.Connection], None]:
        wanted = orjson.dumps([filter["_id"] for filter, _ in changes]).decode()
        statement = self._table.select("id, rowid, body", " WHERE id" + IN_JSON_LIST)

        def run(connection: sqlite3.Connection) -> None:
            stored = {id: (rowid, body) for id, rowid, body in connection.execute(statement, (wanted,)).fetchall()}
            for filter, update in changes:
                if filter["_id"] in stored:
                    rowid, body = stored[filter["_id"]]
                    document: Document = orjson.loads(body)
                    if matches(document, filter, self._table.never_null):
                        self._update(connection, rowid, document, update)
                elif upsert:
                    self._insert(connection, self._row(document_for_upsert(filter, update)))

        return run

    async def delete_many(self, filter: Filter) -> int:
        where, parameters = self._table.where(filter)
        statement = self._table.delete(where)
        return await self._write(lambda connection: connection.execute(statement, parameters).rowcount)

    async def _read(self, run: Callable[[sqlite3.Connection], T]) -> T:
        result: T = await self._connections().lookups.submit(run)
        return result

    async def _write(self, run: Callable[[sqlite3.Connection], T], *, many_statements: bool = False) -> T:
        result: T = await self._connections().writer.submit(run, many_statements=many_statements)
        return result

    def _row(self, document: Document) -> tuple[str, str]:
        id = require_id(document)
        self._refuse_lists_in_indexes(document)
        return id, _dump(document)

    def _as_bulk(self, row: tuple[str, str], result: Any = None) -> Insert:
        return Insert(self._table.name, row, result)

    def _insert(self, connection: sqlite3.Connection, row: tuple[str, str]) -> None:
        with _duplicate_keys_of(self._table):
            insert_rows(connection, self._table.name, [row])

    def _update(self, connection: sqlite3.Connection, rowid: int, document: Document, update: Update) -> None:
        apply_update(document, update)
        self._refuse_lists_in_indexes(document)
        with _duplicate_keys_of(self._table):
            connection.execute(self._table.update_by_rowid(), (_dump(document), rowid))

    def _refuse_lists_in_indexes(self, document: Document) -> None:
        path = self._table.list_in_index(document)
        if path is not None:
            raise ValueError(f"{path} is indexed and cannot hold a list or an object")


class _Connections:
    """A file's connections: three threads (writes, lookups by id, searches) and two that the event loop uses itself.

    Lookups and searches have separate threads so that a long search does not delay lookups. Reading one document takes
    about 30 µs and waking a thread ten times as long, so the event loop reads single documents itself, and commits
    single inserts itself while the writer is idle.
    """

    def __init__(self, path: Path, queue_limit: int, definition: Sequence[str]) -> None:
        self._path = path
        self.writer = WriterThread(path, f"{path.stem}-writer", queue_limit, definition)
        self.lookups = ReaderThread(path, f"{path.stem}-lookups", queue_limit)
        self.searches = ReaderThread(path, f"{path.stem}-searches", queue_limit)

    async def start(self) -> None:
        threads: list[SqliteThread] = [self.writer, self.lookups, self.searches]
        started: list[SqliteThread] = []
        try:
            for thread in threads:
                await thread.start()
                started.append(thread)
            self.loop_reader = connect(self._path, busy_timeout_seconds=0.0)
            self._loop_writer = InlineWriter(self._path)
        except BaseException:
            for thread in started:
                await thread.stop(1.0)
            raise

    async def insert(self, run: Callable[[sqlite3.Connection], T], bulk: Insert) -> T:
        """Runs and commits `run`, which `bulk` describes, and returns its result."""
        if self.writer.is_quiet and (committed := self._loop_writer.write(run)) is not None:
            self.writer.note_inline_write()
            return committed.result
        result: T = await self.writer.submit(run, insert=bulk)
        return result

    async def stop(self, grace_seconds: float) -> None:
        """Stops readers first: the writer ends with a checkpoint, which needs exclusive access to the file."""
        loop = asyncio.get_running_loop()
        self.loop_reader.close()
        self._loop_writer.close()
        deadline = loop.time() + grace_seconds
        await asyncio.gather(self.lookups.stop(grace_seconds), self.searches.stop(grace_seconds))
        await self.writer.stop(deadline - loop.time())


@contextlib.contextmanager
def _duplicate_keys_of(table: Table) -> Iterator[None]:
    """Turns SQLite's errors about unique indexes into `DuplicateKey`."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        fields = table.violated_index(str(error))
        if fields is None:
            raise
        raise DuplicateKey(fields) from None


def _first(connection: sqlite3.Connection, statement: str, parameters: Sequence[Any]) -> Document | None:
    row = connection.execute(statement, parameters).fetchone()
    document: Document | None = None if row is None else orjson.loads(row[0])
    return document


def _dump(document: Document) -> str:
    return orjson.dumps(document, option=_JSON_OPTIONS).decode()
