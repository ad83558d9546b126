"""A document on its way into the index, and what became of it."""

from typing import Literal

from shared.contracts.contract import Contract, Timestamp

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
