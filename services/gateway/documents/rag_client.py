"""Calls rag's internal HTTP for a tenant's documents. Problems of the request are passed on under their code."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import httpx
from cachetools import LRUCache
from pydantic import BaseModel, ValidationError

from services.gateway.http.problems import MadeBefore, ProblemError, unavailable
from services.gateway.http.upstream import passed_on
from shared.contracts.contract import Contract
from shared.contracts.documents import DocumentHits, DocumentPage, DocumentSearch, DocumentsExist, DocumentView
from shared.contracts.problems import CONFLICT
from shared.service.internal_client import InternalClient
from shared.service.single_flight import SingleFlight

ModelT = TypeVar("ModelT", bound=BaseModel)

_TIMEOUT_SECONDS = 30.0
_EXIST_TIMEOUT_SECONDS = 0.5
_MAX_CONNECTIONS = 32
_CACHED_SECONDS = 2.0
_CACHE_SIZE = 10_000
_PASSED_ON = frozenset(
    {"too_large", "unsupported_media_type", "invalid_request", "conflict", "quota_exceeded", "not_found"}
)


@dataclass(frozen=True)
class _Existence:
    exist: bool
    checked_at: float  # by the monotonic clock


class RagDocuments:
    """A tenant's documents. Component. Every call but `exist` raises ProblemError with the answer for the client."""

    def __init__(self, rag_url: str, internal_token: str) -> None:
        self._client = InternalClient(
            rag_url, internal_token, timeout_seconds=_TIMEOUT_SECONDS, max_connections=_MAX_CONNECTIONS
        )
        self._existence: LRUCache[str, _Existence] = LRUCache(_CACHE_SIZE)
        self._lookups = SingleFlight[str, bool](on_result=self._remember)

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        await self._client.stop(grace_seconds)

    async def exist(self, tenant_id: str) -> bool:
        """Whether the tenant has documents. A False is at most 2 s old; True when rag does not answer within 0.5 s."""
        cached = self._existence.get(tenant_id)
        if cached is not None and time.monotonic() - cached.checked_at < _CACHED_SECONDS:
            return cached.exist
        lookup = self._lookups.start(tenant_id, lambda: self._look_up(tenant_id))
        # An outdated True does no harm, as rag passes the upgrade on without passages: no caller waits for a newer one.
        return True if cached is not None and cached.exist else await asyncio.shield(lookup)

    async def submit(
        self, tenant_id: str, *, document_id: str, title: str, filename: str, media_type: str, content: bytes
    ) -> DocumentView:
        """Stores a document, once per `document_id`. Raises MadeBefore when that document has been deleted."""
        params = {
            "tenantId": tenant_id,
            "documentId": document_id,
            "title": title,
            "filename": filename,
            "mediaType": media_type,
        }
        try:
            answer = await self._send("POST", "/internal/documents", params, content)
        except ProblemError as refused:
            if refused.problem is CONFLICT:
                raise MadeBefore(CONFLICT, refused.detail) from None
            raise
        view = _parsed(DocumentView, answer)
        self._remember(tenant_id, exist=True)
        return view

    async def page(self, tenant_id: str, *, limit: int, before: str | None) -> list[DocumentView]:
        """The tenant's documents with ids below `before`, newest first."""
        params = {"tenantId": tenant_id, "limit": str(limit)} | ({"before": before} if before else {})
        return _parsed(DocumentPage, await self._send("GET", "/internal/documents", params)).items

    async def find(self, tenant_id: str, document_id: str) -> DocumentView:
        answer = await self._send("GET", f"/internal/documents/{document_id}", {"tenantId": tenant_id})
        return _parsed(DocumentView, answer)

    async def delete(self, tenant_id: str, document_id: str) -> None:
        await self._send("DELETE", f"/internal/documents/{document_id}", {"tenantId": tenant_id})

    async def search(self, tenant_id: str, search: DocumentSearch) -> DocumentHits:
        answer = await self._send("POST", "/internal/documents/search", {"tenantId": tenant_id}, search)
        return _parsed(DocumentHits, answer)

    async def _look_up(self, tenant_id: str) -> bool:
        path = f"/internal/tenants/{tenant_id}/documents/exists"
        try:
            answer = await self._client.request("GET", path, timeout_seconds=_EXIST_TIMEOUT_SECONDS)
            answer.raise_for_status()
            return DocumentsExist.model_validate_json(answer.content).exist
        except (httpx.HTTPError, ValidationError):
            return True

    def _remember(self, tenant_id: str, exist: bool) -> None:
        self._existence[tenant_id] = _Existence(exist, time.monotonic())

    async def _send(
        self, method: str, path: str, params: Mapping[str, str], body: Contract | bytes | None = None
    ) -> httpx.Response:
        try:
            answer = await self._client.request(method, path, params=params, body=body)
        except httpx.HTTPError:
            raise _unreachable() from None
        if answer.is_success:
            return answer
        raise passed_on(answer, _PASSED_ON, not_found="There is no such document.") or _unreachable()


def _parsed(model: type[ModelT], answer: httpx.Response) -> ModelT:
    try:
        return model.model_validate_json(answer.content)
    except ValidationError:
        raise _unreachable() from None


def _unreachable() -> ProblemError:
    return unavailable("Documents cannot be reached right now.")
