"""The public routes of documents. rag owns the documents; the gateway says whose they are."""

import contextlib
from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response

from services.gateway.documents.rag_client import RagDocuments
from services.gateway.documents.uploads import Upload, UploadPlaces, read_upload
from services.gateway.http.bodies import idempotency_key_of, parse, read_body, require_json
from services.gateway.http.idempotency import OnceOnly
from services.gateway.http.pages import DEFAULT_LIMIT, Cursor, Limit, read_cursor, unavailable, write_cursor
from services.gateway.http.problems import ProblemError
from services.gateway.identity.audit import Action, Audit, Author, author_of
from services.gateway.identity.caller import Caller
from services.gateway.identity.roles import Member, Viewer, confirmed
from shared.contracts.contract import is_uuid, new_id
from shared.contracts.documents import (
    DocumentSearch,
    DocumentSearchRequest,
    DocumentSearchResults,
    DocumentView,
    PublicDocumentPage,
)
from shared.contracts.problems import NOT_FOUND
from shared.contracts.upgrade_http import CitationView
from shared.privacy.sealing import Vault
from shared.storage.documents import StorageUnavailable

_MAX_SEARCH_BYTES = 64 * 1024
_ROUTE = "documents"
DocumentId = Annotated[str, Path(alias="id")]


class DocumentRoutes:
    """Documents of the caller's tenant."""

    def __init__(self, *, documents: RagDocuments, once: OnceOnly, vault: Vault, audit: Audit) -> None:
        self._documents = documents
        self._once = once
        self._vault = vault
        self._audit = audit
        self._uploads = UploadPlaces()

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/api/documents", tags=["documents"])
        router.add_api_route(
            "",
            self.create,
            methods=["POST"],
            status_code=202,
            response_model=DocumentView,
            summary="Add a document",
            openapi_extra=_UPLOAD_BODY,
        )
        router.add_api_route(
            "", self.page, methods=["GET"], response_model=PublicDocumentPage, summary="List documents"
        )
        router.add_api_route(
            "/search",
            self.search,
            methods=["POST"],
            response_model=DocumentSearchResults,
            summary="Search documents",
            openapi_extra=_SEARCH_BODY,
        )
        router.add_api_route(
            "/{id}", self.read, methods=["GET"], response_model=DocumentView, summary="Read a document's state"
        )
        router.add_api_route("/{id}", self.delete, methods=["DELETE"], status_code=204, summary="Delete a document")
        return router

    async def create(self, request: Request, caller: Member) -> Response:
        """Text, Markdown, HTML, PDF or DOCX as a multipart `file` (with an optional `title`), or JSON; up to 20 MiB."""
        key = idempotency_key_of(request.headers.getlist("idempotency-key"))
        async with self._uploads.place(caller.person_id or caller.credential_id, caller.tenant_id):
            upload = await read_upload(request)
            caller = await confirmed(request)
            view, replayed = await self._create(author_of(request, caller), caller, key, upload)
        headers = {"Location": f"/api/documents/{view.id}"}
        if replayed:
            headers["Idempotent-Replayed"] = "true"
        return _json(view.to_json(), 202, headers)

    async def _create(
        self, author: Author, caller: Caller, key: str | None, upload: Upload
    ) -> tuple[DocumentView, bool]:
        async def submit(document_id: str) -> DocumentView:
            async with self._audit.change(caller.tenant_id, author, Action.DOCUMENT_ADDED, document_id):
                return await self._documents.submit(
                    caller.tenant_id,
                    document_id=document_id,
                    title=upload.title,
                    filename=upload.filename,
                    media_type=upload.media_type,
                    content=upload.content,
                )

        if key is None:
            with _stored():
                return await submit(new_id()), False

        body_hash = self._vault.keyed_hash("document-body", caller.tenant_id, upload.digest())
        with _stored():
            answer, replayed = await self._once.with_key(key, caller.tenant_id, _ROUTE, body_hash, submit)
        return DocumentView.model_validate_json(answer), replayed

    async def page(self, caller: Viewer, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Response:
        """The tenant's documents, newest first."""
        items = await self._documents.page(caller.tenant_id, limit=limit, before=read_cursor(cursor))
        next_cursor = write_cursor(items[-1].id) if len(items) == limit else None
        return _json(PublicDocumentPage(items=items, next_cursor=next_cursor).to_json())

    async def read(self, caller: Viewer, document_id: DocumentId) -> Response:
        """One document: pending, indexed or failed."""
        return _json((await self._documents.find(caller.tenant_id, _known_form(document_id))).to_json())

    async def delete(self, request: Request, caller: Member, document_id: DocumentId) -> Response:
        """Deletes a document; once this has answered, nothing of it is retrieved."""
        document_id, author = _known_form(document_id), author_of(request, caller)
        with _stored():
            async with self._audit.change(caller.tenant_id, author, Action.DOCUMENT_DELETED, document_id):
                await self._documents.delete(caller.tenant_id, document_id)
        return Response(status_code=204)

    async def search(self, request: Request, caller: Viewer) -> Response:
        """What the tenant's documents say about a query, best first."""
        require_json(request)
        asked = parse(DocumentSearchRequest, await read_body(request, _MAX_SEARCH_BYTES))
        caller = await confirmed(request)
        search = DocumentSearch(query=asked.query, top_k=asked.top_k, min_score=asked.min_score)
        hits = await self._documents.search(caller.tenant_id, search)
        items = [
            CitationView(document_id=hit.document_id, title=hit.title, score=hit.score, text=hit.text)
            for hit in hits.items
        ]
        return _json(DocumentSearchResults(items=items).to_json())


@contextlib.contextmanager
def _stored() -> Iterator[None]:
    """A change that cannot be audited is not made."""
    try:
        yield
    except StorageUnavailable:
        raise unavailable() from None


def _known_form(document_id: str) -> str:
    if not is_uuid(document_id):
        raise ProblemError(NOT_FOUND, "There is no such document.")
    return document_id.lower()


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def _schema_ref(name: str) -> dict[str, object]:
    return {"schema": {"$ref": f"#/components/schemas/{name}"}}


_FILE_FORM = {
    "schema": {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "string", "format": "binary"}, "title": {"type": "string"}},
    }
}
_UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": _FILE_FORM, "application/json": _schema_ref("DocumentText")},
    }
}
_SEARCH_BODY = {
    "requestBody": {"required": True, "content": {"application/json": _schema_ref("DocumentSearchRequest")}}
}
