"""Public HTTP bodies of documents."""

from pydantic import Field

from shared.contracts.contract import Contract
from shared.contracts.internal_http import DocumentView
from shared.contracts.upgrade_http import CitationView, ClientBody, NotBlank

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
