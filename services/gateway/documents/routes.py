"""The public routes of documents. rag stores them; the gateway authenticates, audits and reads uploads."""

from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response

from services.gateway.documents.rag_client import RagDocuments
from services.gateway.documents.uploads import Upload, UploadPlaces, read_upload
from services.gateway.http.bodies import idempotency_key_of, json_body, json_response, read_json
from services.gateway.http.idempotency import IdempotentCreations
from services.gateway.http.pages import DEFAULT_LIMIT, Cursor, Limit, read_cursor, write_cursor
from services.gateway.http.problems import canonical_id, storage_errors_as_problems
from services.gateway.identity.audit import Action, Audit, Author, author_of
from services.gateway.identity.caller import Caller
from services.gateway.identity.roles import Member, Viewer, confirmed
from shared.contracts.contract import new_id
from shared.contracts.documents import (
    DocumentSearch,
    DocumentSearchRequest,
    DocumentSearchResults,
    DocumentText,
    DocumentView,
    PublicDocumentPage,
)
from shared.contracts.upgrade_http import CitationView
from shared.privacy.sealing import Vault

_ROUTE = "documents"
_UPLOAD_FORM = {
    "schema": {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "string", "format": "binary"}, "title": {"type": "string"}},
    }
}

DocumentId = Annotated[str, Path(alias="id")]


class DocumentRoutes:
    """Documents of the caller's tenant."""

    def __init__(self, *, documents: RagDocuments, creations: IdempotentCreations, vault: Vault, audit: Audit) -> None:
        self._documents = documents
        self._creations = creations
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
            openapi_extra=_upload_body(),
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
            openapi_extra=json_body(DocumentSearchRequest),
        )
        router.add_api_route(
            "/{id}", self.read, methods=["GET"], response_model=DocumentView, summary="Read a document's state"
        )
        router.add_api_route("/{id}", self.delete, methods=["DELETE"], status_code=204, summary="Delete a document")
        return router

    async def create(self, request: Request, caller: Member) -> Response:
        """Text, Markdown, HTML, PDF or DOCX up to 20 MiB, as a multipart `file` with an optional `title` or as JSON."""
        key = idempotency_key_of(request.headers.getlist("idempotency-key"))
        async with self._uploads.place(caller.person_id or caller.credential_id, caller.tenant_id):
            upload = await read_upload(request)
            caller = await confirmed(request)
            view, replayed = await self._create(author_of(request, caller), caller, key, upload)
        headers = {"Location": f"/api/documents/{view.id}"}
        if replayed:
            headers["Idempotent-Replayed"] = "true"
        return json_response(view.to_json(), 202, headers)

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

        with storage_errors_as_problems():
            if key is None:
                return await submit(new_id()), False
            body_hash = self._vault.keyed_hash("document-body", caller.tenant_id, upload.digest())
            answer, replayed = await self._creations.with_key(key, caller.tenant_id, _ROUTE, body_hash, submit)
        return DocumentView.model_validate_json(answer), replayed

    async def page(self, caller: Viewer, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Response:
        """The tenant's documents, newest first."""
        items = await self._documents.page(caller.tenant_id, limit=limit, before=read_cursor(cursor))
        next_cursor = write_cursor(items[-1].id) if len(items) == limit else None
        return json_response(PublicDocumentPage(items=items, next_cursor=next_cursor).to_json())

    async def read(self, caller: Viewer, document_id: DocumentId) -> Response:
        """One document with its state: pending, indexed or failed."""
        return json_response(
            (await self._documents.find(caller.tenant_id, canonical_id(document_id, "document"))).to_json()
        )

    async def delete(self, request: Request, caller: Member, document_id: DocumentId) -> Response:
        """Deletes a document; after the answer no search and no upgrade finds it."""
        document_id, author = canonical_id(document_id, "document"), author_of(request, caller)
        with storage_errors_as_problems():
            async with self._audit.change(caller.tenant_id, author, Action.DOCUMENT_DELETED, document_id):
                await self._documents.delete(caller.tenant_id, document_id)
        return Response(status_code=204)

    async def search(self, request: Request, caller: Viewer) -> Response:
        """Passages of the tenant's documents that match a query, best first."""
        body = await read_json(DocumentSearchRequest, request)
        caller = await confirmed(request)
        search = DocumentSearch(query=body.query, top_k=body.top_k, min_score=body.min_score)
        hits = await self._documents.search(caller.tenant_id, search)
        items = [
            CitationView(document_id=hit.document_id, title=hit.title, score=hit.score, text=hit.text)
            for hit in hits.items
        ]
        return json_response(DocumentSearchResults(items=items).to_json())


def _upload_body() -> dict[str, object]:
    """OpenAPI of a body that is a multipart form or JSON."""
    content = json_body(DocumentText)["requestBody"]["content"]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": _UPLOAD_FORM, **content}}}
