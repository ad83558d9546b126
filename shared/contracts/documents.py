"""Contracts of a workspace's documents: events, public HTTP bodies, and bodies between the gateway and rag."""

from typing import Literal

from pydantic import Field

from shared.contracts.contract import Contract, Timestamp
from shared.contracts.upgrade_http import CitationView, ClientBody, NotBlank
from shared.contracts.upgrade_tasks import RetrievedChunk

MAX_DOCUMENT_BYTES = 20 * 1024 * 1024
MAX_TITLE_CHARACTERS = 200
MAX_QUERY_CHARACTERS = 10_000

DocumentStatus = Literal["pending", "indexed", "failed"]


class DocumentSubmitted(Contract):
    """Data of `documents.submitted.v1`: ids only, the bytes are in rag's own store."""

    document_id: str
    tenant_id: str
    period: str
    occurred_at: Timestamp


class DocumentIndexed(Contract):
    """Data of `documents.indexed.v1`: whether a submitted document can be searched now, or why it failed."""

    document_id: str
    tenant_id: str
    status: DocumentStatus
    chunks: int
    embeddings: int
    error: str | None = None
    occurred_at: Timestamp


class DocumentText(ClientBody):
    """JSON body of `POST /api/documents`."""

    title: NotBlank = Field(min_length=1, max_length=MAX_TITLE_CHARACTERS)
    text: NotBlank = Field(min_length=1)


class DocumentView(Contract):
    """A document without its text. `chunks` is 0 until it is indexed; `error` is why it failed."""

    id: str
    title: str
    status: DocumentStatus
    chunks: int
    error: str | None
    created_at: Timestamp


class PublicDocumentPage(Contract):
    """A page of documents, newest first. `nextCursor` is null on the last one."""

    items: list[DocumentView]
    next_cursor: str | None


class DocumentSearchRequest(ClientBody):
    """Body of `POST /api/documents/search`."""

    query: NotBlank = Field(min_length=1, max_length=MAX_QUERY_CHARACTERS)
    top_k: int = Field(default=5, ge=1, le=20)
    min_score: float = Field(default=0.0, ge=0.0, le=1.0, allow_inf_nan=False)


class DocumentSearchResults(Contract):
    """Answer of `POST /api/documents/search`, best first."""

    items: list[CitationView]


# rag: POST /internal/documents?tenantId=&title=&filename=&mediaType= (the bytes as the body) -> 202 DocumentView
# rag: GET /internal/documents?tenantId=&limit=&before= -> DocumentPage, newest first
# rag: GET /internal/documents/{documentId}?tenantId= -> DocumentView or 404
# rag: DELETE /internal/documents/{documentId}?tenantId= -> 204 or 404
class DocumentPage(Contract):
    """rag's answer to a list of documents."""

    items: list[DocumentView]


# rag: POST /internal/documents/search?tenantId= (DocumentSearch) -> DocumentHits
class DocumentSearch(Contract):
    """A search that the gateway has validated."""

    query: str
    top_k: int = 5
    min_score: float = 0.0


class DocumentHits(Contract):
    """Hits with their text as uploaded: the caller is the tenant that owns them."""

    items: list[RetrievedChunk]


# rag: GET /internal/tenants/{tenantId}/documents/exists -> DocumentsExist
class DocumentsExist(Contract):
    """Whether the tenant has documents to search."""

    exist: bool
