"""The document store port: the interface to a database of JSON documents that every service uses.

`sqlite.py` and `mongodb.py` implement it.

A document is a dict of JSON values with a string `_id`. Field paths may be dotted; they lead through objects, not
through lists. An indexed field holds a single value, never a list.

Filters: `{path: value}` tests equality (`None` also matches a missing field; a list matches if any element is equal).
Operators are `$in`, `$nin`, `$ne`, `$lt`, `$lte`, `$gt`, `$gte` and `$exists`. A range matches only values of the
bound's type: numbers or strings.

Updates: `$set`, `$unset`, `$inc`, `$max`, `$min`, `$push` (with `$each` and `$slice`), `$setOnInsert`. An update of one
document is atomic. A write is durable when its call returns.

Every call may raise `StorageUnavailable`, which is worth retrying later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Document = dict[str, Any]
Filter = Mapping[str, Any]
Update = Mapping[str, Any]
Sort = Sequence[tuple[str, int]]

ID_FIELDS = ("_id",)


class StorageUnavailable(Exception):
    """The store is unreachable, full or closed. Transient: the request itself is valid."""


class DuplicateKey(Exception):
    """A unique index already holds this key. `index_fields` names the index; `("_id",)` is the document's id."""

    def __init__(self, index_fields: tuple[str, ...]) -> None:
        super().__init__(f"duplicate key on ({', '.join(index_fields)})")
        self.index_fields = index_fields


@dataclass(frozen=True)
class Index:
    """An index over `fields`. With `only_when_present` (a string field) it covers only documents that have that field.

    In such a field null counts as missing, for `$exists` too, so that the index can answer `$exists`. In a document
    that a unique index covers, every indexed field must be present and not null.
    """

    fields: tuple[str, ...]
    unique: bool = False
    only_when_present: str | None = None

    @property
    def name(self) -> str:
        """Derived from the definition, so a changed definition makes a new index."""
        partial = f"_if_{self.only_when_present}" if self.only_when_present else ""
        return ("ux_" if self.unique else "ix_") + "_".join(self.fields) + partial


@dataclass(frozen=True)
class CollectionSpec:
    """A collection's name (letters, digits, `_`) and its indexes besides the one on `_id`."""

    name: str
    indexes: tuple[Index, ...] = ()


class Collection(Protocol):
    """One collection of documents. Callers may modify the documents they receive."""

    async def get(self, id: str) -> Document | None:
        """Returns the document with this `_id`."""
        ...

    async def get_many(self, ids: Sequence[str]) -> list[Document]:
        """Returns the documents that exist, in the order of `ids`, each once."""
        ...

    async def insert(self, document: Document) -> None:
        """Raises `DuplicateKey` if a document has the same `_id` or the same key in a unique index."""
        ...

    async def insert_if_absent(self, document: Document) -> tuple[Document, bool]:
        """Returns the stored document with this `_id`, and whether this call inserted it.

        Raises `DuplicateKey` for an index other than `_id`.
        """
        ...

    async def insert_many_if_absent(self, documents: Sequence[Document]) -> set[str]:
        """Returns the ids that this call inserted.

        Raises `DuplicateKey` for an index other than `_id`; then some, all or none of the documents are inserted.
        """
        ...

    async def find(self, filter: Filter, sort: Sort = (), limit: int = 100) -> list[Document]:
        """Returns at most `limit` documents; `sort` lists `(path, 1)` for ascending, `(path, -1)` for descending."""
        ...

    async def find_one(self, filter: Filter) -> Document | None:
        """Returns any matching document."""
        ...

    async def count(self, filter: Filter) -> int:
        """Returns the number of matching documents."""
        ...

    async def update_one(self, filter: Filter, update: Update, upsert: bool = False) -> int:
        """Returns 1 if a document matched or was upserted, else 0.

        An upsert builds its document from the filter's equalities; they or `$setOnInsert` must supply the `_id`.
        Raises `DuplicateKey` if a document with that id exists but does not match.
        """
        ...

    async def update_many(self, filter: Filter, update: Update) -> int:
        """Returns the number of documents that matched."""
        ...

    async def update_each(self, changes: Sequence[tuple[Filter, Update]], upsert: bool = False) -> None:
        """Applies many updates in any order, each atomic by itself.

        Every filter has its own `_id`. A document that exists and does not match is left unchanged; a missing one is
        created if `upsert` is set, as by `update_one`. A change may be attempted more than once, so its filter must no
        longer match once the change is applied.
        """
        ...

    async def find_one_and_update(self, filter: Filter, update: Update, upsert: bool = False) -> Document | None:
        """Like `update_one`, but returns the document after the update, or None if nothing matched."""
        ...

    async def delete_many(self, filter: Filter) -> int:
        """Returns the number of deleted documents."""
        ...


class Database(Protocol):
    """The document store of one service."""

    def collection(self, spec: CollectionSpec) -> Collection:
        """Declares a collection. Must be called before `start`, which creates tables and indexes."""
        ...

    async def start(self) -> None:
        """Connects, and creates missing tables and indexes. Raises `StorageUnavailable`."""
        ...

    async def stop(self, grace_seconds: float) -> None:
        """Finishes pending operations, for at most `grace_seconds`, then closes."""
        ...

    async def ping(self) -> None:
        """Raises `StorageUnavailable` if the store does not respond."""
        ...


def require_id(document: Mapping[str, Any]) -> str:
    """Returns the document's `_id`; raises `ValueError` if it is missing or not a non-empty string."""
    id = document.get("_id")
    if not isinstance(id, str) or not id:
        raise ValueError("a document needs a string _id")
    return id
