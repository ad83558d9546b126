"""Documents: their events, their public HTTP bodies, and those that rag and the gateway exchange."""

from typing import Literal

from pydantic import Field

from shared.contracts.contract import Contract, Timestamp
from shared.contracts.upgrade_http import CitationView, ClientBody, NotBlank
from shared.contracts.upgrade_tasks import RetrievedChunk

DocumentStatus = Literal["pending", "indexed", "failed"]


class DocumentSubmitted(Contract):
    """Data of `documents.submitted.v1`: ids only, the bytes are in rag's own store."""

    document_id: str
    tenant_id: str
    period: str
    occurred_at: Timestamp


class DocumentIndexed(Contract):
    """Data of `documents.indexed.v1`."""

    document_id: str
    tenant_id: str
    status: DocumentStatus
    chunks: int
    embeddings: int
    error: str | None = None
    occurred_at: Timestamp


# rag: POST /internal/documents?tenantId=&title=&filename=&mediaType= (the bytes as the body) -> 202 DocumentView
# rag: GET /internal/documents?tenantId=&limit=&before= -> DocumentPage, newest first
# rag: GET /internal/documents/{documentId}?tenantId= -> DocumentView or 404
# rag: DELETE /internal/documents/{documentId}?tenantId= -> 204 or 404
# rag: POST /internal/documents/search?tenantId= (DocumentSearch) -> DocumentHits
# rag: GET /internal/tenants/{tenantId}/documents/exists -> DocumentsExist
class DocumentView(Contract):
    id: str
    title: str
    status: DocumentStatus
    chunks: int
    error: str | None
    created_at: Timestamp


class DocumentPage(Contract):
    items: list[DocumentView]


class DocumentSearch(Contract):
    query: str
    top_k: int = 5
    min_score: float = 0.0


class DocumentHits(Contract):
    """Hits with their text as uploaded: the caller is the tenant that owns them."""

    items: list[RetrievedChunk]


class DocumentsExist(Contract):
    exist: bool


MAX_DOCUMENT_BYTES = 20 * 1024 * 1024
MAX_TITLE_CHARACTERS = 200
MAX_QUERY_CHARACTERS = 10_000


class DocumentText(ClientBody):
    """JSON body of `POST /api/documents`."""

    title: NotBlank = Field(min_length=1, max_length=MAX_TITLE_CHARACTERS)
    text: NotBlank = Field(min_length=1)


class DocumentSearchRequest(ClientBody):
    """Body of `POST /api/documents/search`."""

    query: NotBlank = Field(min_length=1, max_length=MAX_QUERY_CHARACTERS)
    top_k: int = Field(default=5, ge=1, le=20)
    min_score: float = Field(default=0.0, ge=0.0, le=1.0, allow_inf_nan=False)


class PublicDocumentPage(Contract):
    """A page of documents, newest first. `nextCursor` is null on the last one."""

    items: list[DocumentView]
    next_cursor: str | None


class DocumentSearchResults(Contract):
    items: list[CitationView]
