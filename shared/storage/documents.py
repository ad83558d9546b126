"""The port to a store of documents, as every service sees it. Adapters: `sqlite.py` and `mongodb.py`.

A document is a dict of JSON values with a string `_id`. Field paths may be dotted; they lead through objects, not
through lists. A field that stands in an index holds one value, never a list.

Filters: `{path: value}` (equal; `None` also matches a field that is not there; in a field that holds a list, any
element may be the equal one) and the operators `$in`, `$nin`, `$ne`, `$lt`, `$lte`, `$gt`, `$gte`, `$exists`. A range
matches values of its own type only: numbers or strings.

Updates: `$set`, `$unset`, `$inc`, `$max`, `$min`, `$push` (with `$each` and `$slice`), `$setOnInsert`. One update of
one document is atomic. Each write is durable when its call returns.

Every call may raise `StorageUnavailable`, which is worth trying again later.
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
    """The store cannot be reached, is full, or is shut down. Transient: nothing is wrong with the request."""


class DuplicateKey(Exception):
    """A unique index has this already. `index_fields` names it; `("_id",)` is the document's id."""

    def __init__(self, index_fields: tuple[str, ...]) -> None:
        super().__init__(f"duplicate key on ({', '.join(index_fields)})")
        self.index_fields = index_fields


@dataclass(frozen=True)
class Index:
    """An index over `fields`. With `only_when_present` (a field of strings) it covers only the documents that have one.

    In such a field null counts as not there, for `$exists` too, so that the index serves that question. Where a unique
    index covers a document, all its fields must be there and not null.
    """

    fields: tuple[str, ...]
    unique: bool = False
    only_when_present: str | None = None

    @property
    def name(self) -> str:
        """Derived from what the index is, so that a changed definition is another index."""
        partial = f"_if_{self.only_when_present}" if self.only_when_present else ""
        return ("ux_" if self.unique else "ix_") + "_".join(self.fields) + partial


@dataclass(frozen=True)
class CollectionSpec:
    """A collection's name (letters, digits, `_`) and its indexes beside the one on `_id`."""

    name: str
    indexes: tuple[Index, ...] = ()


class Collection(Protocol):
    """One collection of documents. Documents that come out are the caller's to change."""

    async def get(self, id: str) -> Document | None:
        """The document with this `_id`."""
        ...

    async def get_many(self, ids: Sequence[str]) -> list[Document]:
        """Those of the documents that exist, in the order of `ids`, each once."""
        ...

    async def insert(self, document: Document) -> None:
        """Raises `DuplicateKey` when its `_id` or another unique index has it already."""
        ...

    async def insert_if_absent(self, document: Document) -> tuple[Document, bool]:
        """The stored document with this `_id`, and whether it is ours. Raises `DuplicateKey` for any other index."""
        ...

    async def insert_many_if_absent(self, documents: Sequence[Document]) -> set[str]:
        """The ids that were really inserted now. Raises `DuplicateKey` for an index other than `_id`; then some, all or
        none of the documents may have been inserted."""
        ...

    async def find(self, filter: Filter, sort: Sort = (), limit: int = 100) -> list[Document]:
        """At most `limit` documents; `sort` is a list of `(path, 1)` ascending or `(path, -1)` descending."""
        ...

    async def find_one(self, filter: Filter) -> Document | None:
        """Any one that matches."""
        ...

    async def count(self, filter: Filter) -> int:
        """How many match."""
        ...

    async def update_one(self, filter: Filter, update: Update, upsert: bool = False) -> int:
        """1 when something matched or was upserted, else 0.

        An upsert makes its document from the equalities of the filter, which then has to give the `_id` (or
        `$setOnInsert` does). When a document of that id exists but does not match, it raises `DuplicateKey`.
        """
        ...

    async def update_many(self, filter: Filter, update: Update) -> int:
        """How many matched."""
        ...

    async def update_each(self, changes: Sequence[tuple[Filter, Update]], upsert: bool = False) -> None:
        """Many updates at once, in any order, each atomic by itself.

        Each filter has an `_id` that no other has. A document that is there and does not match is left alone; one that
        is not there is made with `upsert`, as `update_one` makes it. A change may be tried more than once, so it must
        be one whose filter does not match any more once it is done.
        """
        ...

    async def find_one_and_update(self, filter: Filter, update: Update, upsert: bool = False) -> Document | None:
        """As `update_one`; gives the document as it is after the update, None when nothing matched."""
        ...

    async def delete_many(self, filter: Filter) -> int:
        """How many were deleted."""
        ...


class Database(Protocol):
    """One service's store."""

    def collection(self, spec: CollectionSpec) -> Collection:
        """Declares a collection. All are declared before `start`, which makes tables and indexes."""
        ...

    async def start(self) -> None:
        """Connects and makes what is missing. Raises `StorageUnavailable`."""
        ...

    async def stop(self, grace_seconds: float) -> None:
        """Finishes what was asked for, for at most `grace_seconds`, then closes."""
        ...

    async def ping(self) -> None:
        """Raises `StorageUnavailable` when the store cannot answer."""
        ...


def require_id(document: Mapping[str, Any]) -> str:
    """The document's `_id`; `ValueError` when it has none or it is not a string."""
    id = document.get("_id")
    if not isinstance(id, str) or not id:
        raise ValueError("a document needs a string _id")
    return id
