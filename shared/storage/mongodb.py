"""The document port on MongoDB, through motor. Filters and updates are passed on; errors become the port's."""

import asyncio
import copy
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import bson
from bson.raw_bson import RawBSONDocument
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import ReturnDocument, UpdateOne
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    DuplicateKeyError,
    OperationFailure,
    WriteConcernError,
    WriteError,
    WTimeoutError,
)

from shared.storage.document_semantics import check_each, check_update, check_upsert, is_operators
from shared.storage.documents import (
    ID_FIELDS,
    CollectionSpec,
    Document,
    DuplicateKey,
    Filter,
    Sort,
    StorageUnavailable,
    Update,
    require_id,
)
from shared.storage.grouped_requests import GroupedRequests

_TIMEOUT_MS = 5_000
_OPTIONS: dict[str, Any] = {
    "w": "majority",
    "maxPoolSize": 100,
    "serverSelectionTimeoutMS": _TIMEOUT_MS,
    "connectTimeoutMS": _TIMEOUT_MS,
    "socketTimeoutMS": 4 * _TIMEOUT_MS,
    "waitQueueTimeoutMS": _TIMEOUT_MS,
}
_UPSERT_ATTEMPTS = 3
_CHUNK_SIZE = 250
_CONCURRENT_CHUNKS = 2
_MAX_GROUPED_BYTES = 100_000
_DUPLICATE_KEY = 11000
_INDEX_IN_MESSAGE = re.compile(r"index: (?:\S+\.\$)?(\S+)")
# Not primary, shutting down, interrupted, timed out: the errors that MongoDB lists as retryable.
_TRANSIENT_CODES = {6, 7, 50, 89, 91, 112, 134, 189, 262, 317, 358, 9001, 10107, 11600, 11602, 13435, 13436}
T = TypeVar("T")


class MongoDatabase:
    """A database of a MongoDB deployment. Writes are acknowledged by a majority."""

    def __init__(self, url: str, name: str) -> None:
        """Options in `url` override the defaults here. `start` raises `ValueError` if the URL is invalid."""
        self._url = url
        self._name = name
        self._client: AsyncIOMotorClient[Any] | None = None
        self._specs: dict[str, CollectionSpec] = {}

    def collection(self, spec: CollectionSpec) -> "MongoCollection":
        if self._client is not None:
            raise RuntimeError("collections must be declared before the database is started")
        self._specs[spec.name] = spec
        return MongoCollection(spec, lambda: self._database()[spec.name])

    async def start(self) -> None:
        chosen = {name.lower() for name in parse_qs(urlsplit(self._url).query)}
        options = {name: value for name, value in _OPTIONS.items() if name.lower() not in chosen}
        try:
            self._client = AsyncIOMotorClient(self._url, **options)
        except ConfigurationError:
            raise ValueError("MONGODB_URL is not valid") from None  # the driver's message may contain the URL
        try:
            await self.ping()
            for spec in self._specs.values():
                await _call(self._make_indexes(spec))
        except BaseException:
            await self.stop(0)
            raise

    async def stop(self, grace_seconds: float) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    async def ping(self) -> None:
        await _call(self._database().command("ping"))

    def _database(self) -> Any:
        if self._client is None:
            raise StorageUnavailable("the database is closed")
        return self._client[self._name]

    async def _make_indexes(self, spec: CollectionSpec) -> None:
        for index in spec.indexes:
            options: dict[str, Any] = {"name": index.name, "unique": index.unique}
            if index.only_when_present:
                # Not `$exists`, which would also cover null.
                options["partialFilterExpression"] = {index.only_when_present: {"$gte": ""}}
            await self._database()[spec.name].create_index([(field, 1) for field in index.fields], **options)


class MongoCollection:
    """A MongoDB collection. The port documents the methods."""

    def __init__(self, spec: CollectionSpec, collection: Callable[[], Any]) -> None:
        self._spec = spec
        self._collection = collection
        self._partial_paths = {index.only_when_present for index in spec.indexes if index.only_when_present}
        self._reads = GroupedRequests(self._get_one, self._get_each)
        self._inserts = GroupedRequests(self._insert_one, self._insert_each)

    async def get(self, id: str) -> Document | None:
        return await self._reads.request(id)

    async def get_many(self, ids: Sequence[str]) -> list[Document]:
        if not ids:
            return []
        cursor = self._collection().find({"_id": {"$in": list(ids)}})
        found = {document["_id"]: document for document in await _call(cursor.to_list(None))}
        return [found[id] for id in dict.fromkeys(ids) if id in found]

    async def insert(self, document: Document) -> None:
        require_id(document)
        encoded = RawBSONDocument(bson.encode(document))
        if len(encoded.raw) > _MAX_GROUPED_BYTES:
            await self._insert_one(encoded)
        else:
            await self._inserts.request(encoded)

    async def insert_if_absent(self, document: Document) -> tuple[Document, bool]:
        try:
            await self.insert(document)
        except DuplicateKey as duplicate:
            stored = await self.get(require_id(document))
            if stored is None:
                if duplicate.index_fields == ID_FIELDS:
                    raise StorageUnavailable("the document was deleted concurrently") from duplicate
                raise
            return stored, False
        return document, True

    async def insert_many_if_absent(self, documents: Sequence[Document]) -> set[str]:
        """Inserts in order, so that the position of a rejected document shows what was inserted before it."""
        missing = {require_id(document): document for document in reversed(documents)}
        for stored in await self._existing_ids(list(missing)):
            del missing[stored]
        inserted: set[str] = set()
        rest = list(missing.values())
        while rest:
            try:
                await _call(self._collection().insert_many(rest, ordered=True))
            except BulkWriteError as error:
                [(position, rejection)] = self._rejections_in(error).items()
                if not _is_duplicate_id(rejection):
                    raise rejection from error
                inserted.update(document["_id"] for document in rest[:position])
                rest = rest[position + 1 :]
            else:
                inserted.update(document["_id"] for document in rest)
                break
        return inserted

    async def find(self, filter: Filter, sort: Sort = (), limit: int = 100) -> list[Document]:
        if limit < 1:
            raise ValueError("limit must be at least 1")
        cursor = self._collection().find(self._query(filter), limit=limit, sort=list(sort) or None)
        found: list[Document] = await _call(cursor.to_list(limit))
        return found

    async def find_one(self, filter: Filter) -> Document | None:
        found: Document | None = await _call(self._collection().find_one(self._query(filter)))
        return found

    async def count(self, filter: Filter) -> int:
        counted: int = await _call(self._collection().count_documents(self._query(filter)))
        return counted

    async def update_one(self, filter: Filter, update: Update, upsert: bool = False) -> int:
        result = await self._update(
            lambda: self._collection().update_one(self._query(filter), _sent_update(update), upsert=upsert),
            filter,
            update,
            upsert,
        )
        return 1 if result.matched_count or result.upserted_id is not None else 0

    async def find_one_and_update(self, filter: Filter, update: Update, upsert: bool = False) -> Document | None:
        found: Document | None = await self._update(
            lambda: self._collection().find_one_and_update(
                self._query(filter), _sent_update(update), upsert=upsert, return_document=ReturnDocument.AFTER
            ),
            filter,
            update,
            upsert,
        )
        return found

    async def update_many(self, filter: Filter, update: Update) -> int:
        check_update(update)
        result = await self._write(lambda: self._collection().update_many(self._query(filter), _sent_update(update)))
        matched: int = result.matched_count
        return matched

    async def update_each(self, changes: Sequence[tuple[Filter, Update]], upsert: bool = False) -> None:
        check_each(changes)
        slots = asyncio.Semaphore(_CONCURRENT_CHUNKS)

        async def update(chunk: Sequence[tuple[Filter, Update]]) -> None:
            async with slots:
                await (self._upsert_chunk(chunk) if upsert else self._update_chunk(chunk))

        chunks = (changes[at : at + _CHUNK_SIZE] for at in range(0, len(changes), _CHUNK_SIZE))
        outcomes = await asyncio.gather(*map(update, chunks), return_exceptions=True)
        for failure in filter(None, outcomes):
            raise failure

    async def _update_chunk(self, changes: Sequence[tuple[Filter, Update]], upsert: bool = False) -> list[int]:
        """Returns the positions of upserts that failed because a document with their `_id` exists."""
        requests = [UpdateOne(self._query(filter), _sent_update(update), upsert=upsert) for filter, update in changes]
        try:
            await _call(self._collection().bulk_write(requests, ordered=False))
        except BulkWriteError as error:
            rejections = self._rejections_in(error)
            for rejection in rejections.values():
                if not (upsert and _is_duplicate_id(rejection)):
                    raise rejection from error
            return list(rejections)
        return []

    async def _upsert_chunk(self, changes: Sequence[tuple[Filter, Update]]) -> None:
        """Upserts a chunk. A document that exists does not match or was just created; a plain update settles both."""
        for _ in range(_UPSERT_ATTEMPTS):
            existing = [changes[position] for position in await self._update_chunk(changes, upsert=True)]
            if not existing:
                return
            await self._update_chunk(existing)
            found = set(await self._existing_ids([filter["_id"] for filter, _ in existing]))
            changes = [change for change in existing if change[0]["_id"] not in found]  # deleted concurrently
            if not changes:
                return
        raise StorageUnavailable("the same documents are being created and deleted concurrently")

    async def delete_many(self, filter: Filter) -> int:
        result = await self._write(lambda: self._collection().delete_many(self._query(filter)))
        deleted: int = result.deleted_count
        return deleted

    async def _get_one(self, id: str) -> Document | None:
        return await self.find_one({"_id": id})

    async def _get_each(self, ids: Sequence[str]) -> list[Document | None]:
        """Returns the document for each id. Repeated ids get copies, since callers may modify what they receive."""
        found = {document["_id"]: document for document in await self.get_many(list(dict.fromkeys(ids)))}
        returned: set[str] = set()
        documents: list[Document | None] = []
        for id in ids:
            documents.append(copy.deepcopy(found[id]) if id in returned else found.get(id))
            returned.update({id} & found.keys())
        return documents

    async def _insert_one(self, document: RawBSONDocument) -> None:
        await self._write(lambda: self._collection().insert_one(document))

    async def _insert_each(self, documents: Sequence[RawBSONDocument]) -> list[Exception | None]:
        """Inserts the documents independently; returns the error of each, or None."""
        rejections: dict[int, Exception] = {}
        try:
            await _call(self._collection().insert_many(documents, ordered=False))
        except BulkWriteError as error:
            rejections = self._rejections_in(error)
        return [rejections.get(position) for position in range(len(documents))]

    def _rejections_in(self, error: BulkWriteError) -> dict[int, Exception]:
        """Returns the errors by position. Raises StorageUnavailable if the write concern failed."""
        if error.details.get("writeConcernErrors"):
            raise StorageUnavailable(str(error)) from error
        return {details["index"]: self._rejection(details) for details in error.details["writeErrors"]}

    def _rejection(self, details: Any) -> Exception:
        code, message = details.get("code"), details.get("errmsg", "")
        if code == _DUPLICATE_KEY:
            return DuplicateKey(self._index_fields(details, message))
        if code in _TRANSIENT_CODES:
            return StorageUnavailable(message)
        return WriteError(message, code, details)

    async def _update(self, send: Callable[[], Awaitable[T]], filter: Filter, update: Update, upsert: bool) -> T:
        """Sends an update. Concurrent upserts may both try to insert the document: the loser retries and finds it."""
        check_update(update)
        if upsert:
            check_upsert(filter, update)
        for _ in range(_UPSERT_ATTEMPTS - 1):
            try:
                return await self._write(send)
            except DuplicateKey:
                if not upsert:
                    raise
        return await self._write(send)

    async def _write(self, send: Callable[[], Awaitable[T]]) -> T:
        try:
            return await _call(send())
        except DuplicateKeyError as error:
            raise DuplicateKey(self._index_fields(error.details or {}, str(error))) from error

    async def _existing_ids(self, ids: Sequence[str]) -> list[str]:
        cursor = self._collection().find({"_id": {"$in": ids}}, {"_id": 1})
        return [document["_id"] for document in await _call(cursor.to_list(None))]

    def _query(self, filter: Filter) -> dict[str, Any]:
        """Returns the filter with `$exists` on partially indexed fields rewritten so that the index serves it."""
        rewritten = dict(filter)
        for path in self._partial_paths & rewritten.keys():
            condition = rewritten[path]
            if is_operators(condition) and "$exists" in condition:
                presence = {"$gte": ""} if condition["$exists"] else {"$in": [None]}
                others = {name: value for name, value in condition.items() if name != "$exists"}
                if others.keys() & presence.keys():
                    raise ValueError(f"{path}: $exists cannot be combined with {', '.join(others)}")
                rewritten[path] = others | presence
        return rewritten

    def _index_fields(self, details: Any, message: str) -> tuple[str, ...]:
        pattern = details.get("keyPattern")
        if pattern:
            return tuple(pattern)
        match = _INDEX_IN_MESSAGE.search(message)
        named = match.group(1) if match else ""
        return next((index.fields for index in self._spec.indexes if index.name == named), ID_FIELDS)


def _sent_update(update: Update) -> dict[str, Any]:
    """Returns the update without operators that have no fields, which MongoDB rejects before 5.0."""
    return {operator: changes for operator, changes in update.items() if changes}


def _is_duplicate_id(rejection: Exception) -> bool:
    """Whether the error means that a document with that `_id` exists."""
    return isinstance(rejection, DuplicateKey) and rejection.index_fields == ID_FIELDS


async def _call(answer: Awaitable[T]) -> T:
    """Awaits a driver call; turns its errors of connection and fail-over into `StorageUnavailable`."""
    try:
        return await answer
    except (TimeoutError, ConnectionFailure, WTimeoutError, WriteConcernError) as error:
        raise StorageUnavailable(str(error)) from error
    except (DuplicateKeyError, BulkWriteError):
        raise
    except OperationFailure as error:
        if error.code in _TRANSIENT_CODES:
            raise StorageUnavailable(str(error)) from error
        raise
