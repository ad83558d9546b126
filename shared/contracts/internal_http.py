"""Bodies of the HTTP routes that services offer each other. All routes want the `X-Internal-Token` header."""

from shared.contracts.contract import Contract, Timestamp
from shared.contracts.document_events import DocumentStatus
from shared.contracts.upgrade_results import UpgradeResult
from shared.contracts.upgrade_tasks import RetrievedChunk

INTERNAL_TOKEN_HEADER = "X-Internal-Token"  # noqa: S105 -- the name of a header


# upgrader: GET /internal/upgrades/{upgradeId}?tenantId=  -> UpgradeResult or 404
# upgrader: POST /internal/upgrades/lookup (ResultLookup) -> ResultPage, in the order of the ids, missing ones left out
# upgrader: GET /internal/upgrades?tenantId=&status=&userRef=&before=&limit= -> ResultPage, newest first
# upgrader: DELETE /internal/upgrades/{upgradeId}?tenantId= -> 204: the content is gone, the end stays known
# summarizer, rag: DELETE /internal/upgrades/{upgradeId}?tenantId= -> 204: no content of it is left, or 404: none was
class ResultLookup(Contract):
    upgrade_ids: list[str]


class ResultPage(Contract):
    items: list[UpgradeResult]


# usage: POST /internal/events/missing (EventIds) -> EventIds: those that are not in the ledger as counted
class EventIds(Contract):
    event_ids: list[str]


# usage: GET /internal/tenants/{tenantId}/counters?period=YYYY-MM -> TenantCounters (zeros when nothing was counted)
class TenantCounters(Contract):
    tenant_id: str
    period: str
    upgrades: int = 0
    tokens: int = 0
    embeddings: int = 0
    cost_nano_usd: int = 0
    version: int = 0


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
