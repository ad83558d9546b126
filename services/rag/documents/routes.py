"""Internal HTTP of documents, for the gateway: upload, list, read, delete, search, and the erasure of upgrades."""

from collections.abc import Awaitable
from datetime import datetime, timedelta
from typing import Annotated, TypeVar

import orjson
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
    PROBLEM_MEDIA_TYPE,
    QUOTA_EXCEEDED,
    UNAVAILABLE,
    Problem,
)
from shared.messaging.errors import Transient
from shared.messaging.publish.outbox import FactOutbox
from shared.observability.logs import get_logger
from shared.privacy.redaction import PlaceholderMap, redact
from shared.privacy.sealing import SealBroken, Vault
from shared.service.problems import problem_response
from shared.service.recorded_stage import erase_output
from shared.storage.documents import DuplicateKey, StorageUnavailable

MAX_TOP_K = 50
MAX_QUERY_CHARACTERS = 10_000
_QUOTA_FIELDS = ("meter", "limit", "used", "held", "resetsAt")

T = TypeVar("T")
Tenant = Annotated[str, Query(alias="tenantId", min_length=1, max_length=128)]

log = get_logger(__name__)


class _Refused(Exception):
    def __init__(self, response: Response) -> None:
        self.response = response


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
        router.add_api_route("/internal/documents", self.take_in, methods=["POST"])
        router.add_api_route("/internal/documents", self.page, methods=["GET"])
        router.add_api_route("/internal/documents/search", self.find, methods=["POST"])
        router.add_api_route("/internal/documents/{document_id}", self.read, methods=["GET"])
        router.add_api_route("/internal/documents/{document_id}", self.delete, methods=["DELETE"])
        router.add_api_route("/internal/tenants/{tenant_id}/documents/exists", self.exist, methods=["GET"])
        return router

    async def take_in(
        self,
        request: Request,
        tenant_id: Tenant,
        title: str = "",
        filename: str = "",
        media_type: Annotated[str, Query(alias="mediaType")] = "",
        document_id: Annotated[str, Query(alias="documentId")] = "",
    ) -> Response:
        """The bytes of a file as the body -> 202 and the document; 409, 413, 415 or 422 when it cannot be one."""
        try:
            data = await request.body()
            upload = Upload(tenant_id, data, title, filename, media_type, document_id.lower())
            view = await _available(self._documents.take_in(upload))
        except FileRejected as rejected:
            return _rejection(rejected.problem, rejected.detail)
        except DuplicateKey:
            return problem_response(CONFLICT, "This document id is taken.")
        except DocumentDeleted:
            return problem_response(CONFLICT, "This document was added before and has been deleted.")
        except _Refused as refused:
            return refused.response
        return _json(view, 202)

    async def page(
        self, tenant_id: Tenant, before: str = "", limit: Annotated[int, Query(ge=1, le=200)] = 50
    ) -> Response:
        try:
            return _json(
                DocumentPage(items=await _available(self._documents.list(tenant_id, before=before, limit=limit)))
            )
        except _Refused as refused:
            return refused.response

    async def read(self, document_id: str, tenant_id: Tenant) -> Response:
        try:
            view = await _available(self._documents.get(tenant_id, document_id))
        except _Refused as refused:
            return refused.response
        if view is None:
            raise HTTPException(404)
        return _json(view)

    async def delete(self, document_id: str, tenant_id: Tenant) -> Response:
        """204: from now on nothing of the document is retrieved."""
        try:
            deleted = is_uuid(document_id) and await _available(self._documents.delete(tenant_id, document_id))
        except _Refused as refused:
            return refused.response
        if not deleted:
            raise HTTPException(404)
        return Response(status_code=204)

    async def find(self, question: DocumentSearch, tenant_id: Tenant) -> Response:
        """Hits with their text as uploaded. The query leaves the service redacted, as everything does."""
        query = redact(question.query[:MAX_QUERY_CHARACTERS], PlaceholderMap())
        deadline = now_utc() + timedelta(seconds=self._query_seconds)
        top_k = max(1, min(MAX_TOP_K, question.top_k))
        try:
            result = await _available(self._searched(tenant_id, query, top_k, question.min_score, deadline))
        except _Refused as refused:
            return refused.response
        except NoRoom as refused:
            return _no_room(refused)
        items = []
        for found in result.found:
            try:
                items.append(as_uploaded(found, self._vault, tenant_id))
            except SealBroken:
                log.error("chunk_seal_broken", document_id=found.row.document_id)
        return _json(DocumentHits(items=items))

    async def exist(self, tenant_id: str) -> Response:
        try:
            return _json(DocumentsExist(exist=await _available(self._documents.exist(tenant_id))))
        except _Refused as refused:
            return refused.response

    async def _searched(
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


async def _available(work: Awaitable[T]) -> T:
    """The result of `work`; an answer that says "later" while store, index or broker are out."""
    try:
        return await work
    except (StorageUnavailable, IndexUnavailable, Transient) as error:
        log.warning("not_available", error=type(error).__name__)
        raise _Refused(problem_response(UNAVAILABLE, headers={"Retry-After": "2"})) from error


def _no_room(refused: NoRoom) -> Response:
    """The gateway's own words about the quota, for whoever asked."""
    told = {name: refused.problem[name] for name in _QUOTA_FIELDS if name in refused.problem}
    detail = "The embeddings left of this month's quota do not suffice for a search."
    body = {
        "type": "about:blank",
        "title": QUOTA_EXCEEDED.title,
        "status": QUOTA_EXCEEDED.status,
        "detail": detail,
        "code": QUOTA_EXCEEDED.code,
        **told,
    }
    headers = {"Retry-After": refused.retry_after} if refused.retry_after else None
    return Response(orjson.dumps(body), QUOTA_EXCEEDED.status, headers, PROBLEM_MEDIA_TYPE)


def _rejection(problem: Problem, detail: str) -> Response:
    if problem is not INVALID_REQUEST:
        return problem_response(problem, detail)
    body = {
        "type": "about:blank",
        "title": problem.title,
        "status": problem.status,
        "detail": detail,
        "code": problem.code,
        "errors": [{"field": "file", "detail": detail}],
    }
    return Response(orjson.dumps(body), problem.status, media_type=PROBLEM_MEDIA_TYPE)


def _json(answer: Contract, status: int = 200) -> Response:
    return Response(answer.to_json(), status, media_type="application/json")


def erasure_routes(store: RagStore, outputs: FactOutbox) -> APIRouter:
    """The routes under `/internal/upgrades`."""
    router = APIRouter(prefix="/internal/upgrades")

    @router.delete("/{upgrade_id}")
    async def erase(upgrade_id: str, tenant_id: Annotated[str, Query(alias="tenantId")]) -> Response:
        """204: nothing that was retrieved or embedded for it is left. 404: there was nothing."""
        try:
            vectors = await store.embeddings.delete_many({"upgradeId": upgrade_id, "tenantId": tenant_id})
            recorded = await erase_output(outputs, tenant_id, upgrade_id)
        except StorageUnavailable:
            return problem_response(UNAVAILABLE, headers={"Retry-After": "2"})
        if not vectors and not recorded:
            raise HTTPException(404)
        return Response(status_code=204)

    return router
