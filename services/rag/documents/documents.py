"""The use cases of a tenant's documents: upload, list, read, delete."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from services.rag.indexing.file_types import FileRejected, file_type
from services.rag.indexing.preparer import Preparer
from services.rag.search.vector_index import IndexUnavailable, VectorIndex
from services.rag.store import DELETED, FAILED, INDEXED, PENDING, RECEIVING, SHOWN, RagStore, from_now
from shared.contracts.contract import format_utc, is_uuid, new_id, now_utc, period_of
from shared.contracts.documents import DocumentSubmitted, DocumentView
from shared.contracts.problems import INVALID_REQUEST
from shared.messaging.errors import Transient
from shared.observability.logs import get_logger
from shared.storage.documents import DuplicateKey, StorageUnavailable

MAX_TITLE_CHARACTERS = 200

Submit = Callable[[DocumentSubmitted], Awaitable[None]]

log = get_logger(__name__)


class DocumentDeleted(Exception):
    """A document with this id was uploaded before and has been deleted."""


@dataclass(frozen=True)
class Upload:
    """An uploaded file. With a `document_id`, repeated uploads make one document."""

    tenant_id: str
    data: bytes
    title: str = ""
    filename: str = ""
    media_type: str = ""
    document_id: str = ""


class Documents:
    """Stores, lists and deletes documents. Every method may raise StorageUnavailable."""

    def __init__(self, store: RagStore, index: VectorIndex, preparer: Preparer, submit: Submit) -> None:
        self._store = store
        self._index = index
        self._preparer = preparer
        self._submit = submit

    async def add(self, upload: Upload) -> DocumentView:
        """Checks and stores an upload, and submits it for indexing.

        The record is written before the bytes, in a state that is not listed, so that the sweep can find what a killed
        process left behind. Raises FileRejected before anything is stored, DuplicateKey for an id of another tenant,
        and DocumentDeleted.
        """
        if upload.document_id and not is_uuid(upload.document_id):
            raise FileRejected(INVALID_REQUEST, "The document id is not a UUID.")
        found_type = await asyncio.to_thread(
            file_type, upload.data, filename=upload.filename, media_type=upload.media_type
        )
        await self._preparer.check(upload.data, found_type)
        now = format_utc(now_utc())
        record: dict[str, Any] = {
            "_id": upload.document_id or new_id(),
            "tenantId": upload.tenant_id,
            "title": _title(upload),
            "type": found_type.type.value,
            "encoding": found_type.encoding,
            "size": len(upload.data),
            "status": RECEIVING,
            "chunks": 0,
            "error": None,
            "createdAt": now,
            "submittedAt": now,
            "submissions": 1,
            "generation": "",
            "space": "",
            "leaseUntil": "",
            "embeddings": 0,
            "injections": 0,
            "period": period_of(now_utc()),
        }
        stored, ours = await self._store.documents.insert_if_absent(record)
        if stored["tenantId"] != upload.tenant_id:
            raise DuplicateKey(("_id",))
        if stored["status"] == DELETED:
            raise DocumentDeleted
        if not ours and stored["status"] != RECEIVING:
            return view(stored)
        await self._store.write_bytes(upload.tenant_id, record["_id"], upload.data)
        await self._store.documents.update_one(
            {"_id": record["_id"], "status": RECEIVING}, {"$set": {"status": PENDING}}
        )
        await self.submit(record)
        return view(record | {"status": PENDING})

    async def submit(self, record: dict[str, Any]) -> None:
        """Submits a document for indexing. Without a broker it stays pending, and the sweep submits it."""
        submitted = DocumentSubmitted(
            document_id=record["_id"], tenant_id=record["tenantId"], period=record["period"], occurred_at=now_utc()
        )
        try:
            await self._submit(submitted)
        except Transient as error:
            log.warning("document_not_submitted", document_id=record["_id"], error=type(error).__name__)

    async def get(self, tenant_id: str, document_id: str) -> DocumentView | None:
        record = await self._store.document(tenant_id, document_id)
        return view(record) if record else None

    async def list(self, tenant_id: str, *, before: str, limit: int) -> "list[DocumentView]":
        """One page, newest first. `before` is the id of the last document of the page before, or a time, or empty."""
        wanted: dict[str, Any] = {"tenantId": tenant_id, "status": {"$in": list(SHOWN)}}
        if is_uuid(before):
            wanted["_id"] = {"$lt": before}
        elif before:
            wanted["createdAt"] = {"$lt": before}
        records = await self._store.documents.find(wanted, sort=[("_id", -1)], limit=limit)
        return [view(record) for record in records]

    async def delete(self, tenant_id: str, document_id: str) -> bool:
        """Deletes a document with all its data; returns False when the tenant has no document with that id.

        From the moment its record is a tombstone, no search returns the document and no indexing run can commit it.
        Data that cannot be removed now is removed by the sweep.
        """
        marked = await self._store.documents.update_one(
            {"_id": document_id, "tenantId": tenant_id, "status": {"$in": list(SHOWN)}},
            {
                "$set": {
                    "status": DELETED,
                    "submittedAt": from_now(0),
                    "title": "",
                    "error": None,
                    "generation": "",
                    "purged": False,
                }
            },
        )
        if not marked:
            return False
        try:
            await self.clear(tenant_id, document_id)
        except (StorageUnavailable, IndexUnavailable) as error:
            log.warning("document_not_cleared_yet", document_id=document_id, error=type(error).__name__)
        return True

    async def clear(self, tenant_id: str, document_id: str) -> None:
        """Removes a deleted document's bytes, rows and cached embeddings. Safe to repeat."""
        for space in await self._store.spaces(tenant_id):
            await self._index.delete_document(tenant_id, space, document_id)
        await self._store.delete_content(tenant_id, document_id)

    async def exist(self, tenant_id: str) -> bool:
        """Whether the tenant has an indexed document."""
        return await self._store.has_documents(tenant_id)


def view(record: dict[str, Any]) -> DocumentView:
    """The public view of a document's record."""
    status = record["status"] if record["status"] in (INDEXED, FAILED) else PENDING
    return DocumentView(
        id=record["_id"],
        title=record["title"],
        status=status,
        chunks=record["chunks"],
        error=record["error"],
        created_at=datetime.fromisoformat(record["createdAt"]),
    )


def _title(upload: Upload) -> str:
    name = PurePosixPath(upload.filename.replace("\\", "/")).stem
    title = " ".join((upload.title or name).split()) or "Untitled"
    return "".join(c for c in title if c.isprintable())[:MAX_TITLE_CHARACTERS] or "Untitled"
