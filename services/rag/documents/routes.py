"""The internal HTTP routes of rag, for the gateway: documents, search, and the erasure of upgrades."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import wraps
from typing import Annotated, ParamSpec

from fastapi import APIRouter, HTTPException, Query, Request, Response

from services.rag.documents.documents import DocumentDeleted, Documents, Upload
from services.rag.indexing.file_types import FileRejected
from services.rag.indexing.index import Announcements
from services.rag.search.embedding_holds import NoRoom, SearchHolds
from services.rag.search.retrieve import as_uploaded
from services.rag.search.search import HybridSearch, SearchResult
from services.rag.search.vector_index import IndexUnavailable
from services.rag.store import RagStore
from shared.contracts.contract import Contract, is_uuid, now_utc
from shared.contracts.documents import DocumentHits, DocumentPage, DocumentSearch, DocumentsExist
from shared.contracts.problems import (
    CONFLICT,
    INVALID_REQUEST,
    QUOTA_EXCEEDED,
)
from shared.contracts.upgrade_http import FieldProblem
from shared.messaging.errors import Transient
from shared.messaging.publish.outbox import FactOutbox
from shared.observability.logs import get_logger
from shared.privacy.placeholders import PlaceholderMap
from shared.privacy.redaction import redact
from shared.privacy.sealing import SealBroken, Vault
from shared.service.problems import problem_response, unavailable_response
from shared.service.recorded_stage import erase_output
from shared.storage.documents import DuplicateKey, StorageUnavailable

MAX_TOP_K = 50
MAX_QUERY_CHARACTERS = 10_000
_QUOTA_FIELDS = ("meter", "limit", "used", "held", "resetsAt")

P = ParamSpec("P")
Tenant = Annotated[str, Query(alias="tenantId", min_length=1, max_length=128)]

log = get_logger(__name__)


def errors_as_problems(handler: Callable[P, Awaitable[Response]]) -> Callable[P, Awaitable[Response]]:
    """Wraps a route handler: the domain's errors become problem responses, outages a 503 with `Retry-After`."""

    @wraps(handler)
    async def wrapped(*args: P.args, **kwargs: P.kwargs) -> Response:
        try:
            return await handler(*args, **kwargs)
        except FileRejected as rejected:
            errors = [FieldProblem(field="file", detail=rejected.detail)] if rejected.problem is INVALID_REQUEST else []
            return problem_response(rejected.problem, rejected.detail, errors=errors)
        except DuplicateKey:
            return problem_response(CONFLICT, "This document id is taken.")
        except DocumentDeleted:
            return problem_response(CONFLICT, "This document was added before and has been deleted.")
        except NoRoom as exhausted:
            quota = {name: exhausted.problem[name] for name in _QUOTA_FIELDS if name in exhausted.problem}
            detail = "The embeddings left of this month's quota do not suffice for a search."
            headers = {"Retry-After": exhausted.retry_after} if exhausted.retry_after else None
            return problem_response(QUOTA_EXCEEDED, detail, headers, extra=quota)
        except (StorageUnavailable, IndexUnavailable, Transient) as error:
            log.warning("not_available", error=type(error).__name__)
            return unavailable_response()

    return wrapped


class DocumentRoutes:
    """The routes under `/internal/documents` and `/internal/tenants`."""

    def __init__(
        self,
        *,
        documents: Documents,
        search: HybridSearch,
        vault: Vault,
        facts: Announcements,
        holds: SearchHolds,
        query_seconds: float,
    ) -> None:
        self._documents = documents
        self._search = search
        self._vault = vault
        self._facts = facts
        self._holds = holds
        self._query_seconds = query_seconds

    def router(self) -> APIRouter:
        router = APIRouter()
        router.add_api_route("/internal/documents", self.add, methods=["POST"])
        router.add_api_route("/internal/documents", self.page, methods=["GET"])
        router.add_api_route("/internal/documents/search", self.search, methods=["POST"])
        router.add_api_route("/internal/documents/{document_id}", self.read, methods=["GET"])
        router.add_api_route("/internal/documents/{document_id}", self.delete, methods=["DELETE"])
        router.add_api_route("/internal/tenants/{tenant_id}/documents/exists", self.exist, methods=["GET"])
        return router

    @errors_as_problems
    async def add(
        self,
        request: Request,
        tenant_id: Tenant,
        title: str = "",
        filename: str = "",
        media_type: Annotated[str, Query(alias="mediaType")] = "",
        document_id: Annotated[str, Query(alias="documentId")] = "",
    ) -> Response:
        """Stores the file in the body: 202 with the document, or 409, 413, 415 or 422."""
        upload = Upload(tenant_id, await request.body(), title, filename, media_type, document_id.lower())
        return _json(await self._documents.add(upload), 202)

    @errors_as_problems
    async def page(
        self, tenant_id: Tenant, before: str = "", limit: Annotated[int, Query(ge=1, le=200)] = 50
    ) -> Response:
        return _json(DocumentPage(items=await self._documents.list(tenant_id, before=before, limit=limit)))

    @errors_as_problems
    async def read(self, document_id: str, tenant_id: Tenant) -> Response:
        view = await self._documents.get(tenant_id, document_id)
        if view is None:
            raise HTTPException(404)
        return _json(view)

    @errors_as_problems
    async def delete(self, document_id: str, tenant_id: Tenant) -> Response:
        """Deletes a document: 204, and no later retrieval returns any of it."""
        if not (is_uuid(document_id) and await self._documents.delete(tenant_id, document_id)):
            raise HTTPException(404)
        return Response(status_code=204)

    @errors_as_problems
    async def search(self, search: DocumentSearch, tenant_id: Tenant) -> Response:
        """Returns matching chunks with their text as uploaded. The query is redacted before it leaves the service."""
        query = redact(search.query[:MAX_QUERY_CHARACTERS], PlaceholderMap())
        deadline = now_utc() + timedelta(seconds=self._query_seconds)
        top_k = max(1, min(MAX_TOP_K, search.top_k))
        result = await self._search_with_hold(tenant_id, query, top_k, search.min_score, deadline)
        items = []
        for found in result.found:
            try:
                items.append(as_uploaded(found, self._vault, tenant_id))
            except SealBroken:
                log.error("chunk_seal_broken", document_id=found.row.document_id)
        return _json(DocumentHits(items=items))

    @errors_as_problems
    async def exist(self, tenant_id: str) -> Response:
        return _json(DocumentsExist(exist=await self._documents.exist(tenant_id)))

    async def _search_with_hold(
        self, tenant_id: str, query: str, top_k: int, min_score: float, deadline: datetime
    ) -> SearchResult:
        async with self._holds.held(tenant_id, query) as hold:
            result = await self._search.search(tenant_id, [query], top_k=top_k, min_score=min_score, deadline=deadline)
            used = result.usage
            if used is not None and (used.embeddings or used.tokens_in):
                event = hold.usage_event(tenant_id, used)
                await self._facts.used(event)
                hold.add_spent(event)
            return result


def erasure_routes(store: RagStore, outputs: FactOutbox) -> APIRouter:
    """The routes under `/internal/upgrades`."""
    router = APIRouter(prefix="/internal/upgrades")

    @router.delete("/{upgrade_id}")
    @errors_as_problems
    async def erase(upgrade_id: str, tenant_id: Annotated[str, Query(alias="tenantId")]) -> Response:
        """Deletes what was retrieved and embedded for an upgrade: 204, or 404 when there was nothing."""
        vectors = await store.embeddings.delete_many({"upgradeId": upgrade_id, "tenantId": tenant_id})
        if not await erase_output(outputs, tenant_id, upgrade_id) and not vectors:
            raise HTTPException(404)
        return Response(status_code=204)

    return router


def _json(answer: Contract, status: int = 200) -> Response:
    return Response(answer.to_json(), status, media_type="application/json")
