"""Documents, over rag's internal HTTP. Problems that rag reports are passed on under their code."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeVar

import httpx
import orjson
from pydantic import BaseModel, ValidationError

from services.gateway.http.problems import MadeBefore, ProblemError
from shared.contracts.documents import DocumentHits, DocumentPage, DocumentSearch, DocumentsExist, DocumentView
from shared.contracts.internal_http import INTERNAL_TOKEN_HEADER
from shared.contracts.problems import CONFLICT, NOT_FOUND, PROBLEMS, QUOTA_EXCEEDED, UNAVAILABLE
from shared.contracts.upgrade_http import FieldProblem
from shared.service.internal_client import retry_once_on_disconnect

ModelT = TypeVar("ModelT", bound=BaseModel)

_TIMEOUT = httpx.Timeout(30.0, connect=2.0)
_EXIST_TIMEOUT = httpx.Timeout(0.5)
_LIMITS = httpx.Limits(max_connections=32)
_KNOWN_FOR_SECONDS = 2.0
_MOST_KNOWN = 10_000
_PASSED_ON = frozenset(
    {"too_large", "unsupported_media_type", "invalid_request", "conflict", "quota_exceeded", "not_found"}
)
_LONGEST_DETAIL = 500
_QUOTA_FIELDS = ("meter", "limit", "used", "held", "resetsAt")


class RagDocuments:
    """A tenant's documents. Component. Every call raises ProblemError for what its client is to be told."""

    def __init__(self, rag_url: str, internal_token: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=rag_url, timeout=_TIMEOUT, limits=_LIMITS, headers={INTERNAL_TOKEN_HEADER: internal_token}
        )
        self._known: OrderedDict[str, tuple[float, bool]] = OrderedDict()
        self._asking: dict[str, asyncio.Task[bool]] = {}

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        await self._http.aclose()

    async def exist(self, tenant_id: str) -> bool:
        """Whether the tenant has documents, at most 2 s old when it says no; True when rag cannot tell."""
        known = self._known.get(tenant_id)
        if known is not None and time.monotonic() - known[0] < _KNOWN_FOR_SECONDS:
            return known[1]
        asking = self._asking.get(tenant_id)
        if asking is None:
            asking = self._asking[tenant_id] = asyncio.create_task(self._ask(tenant_id))
            asking.add_done_callback(lambda _: self._asking.pop(tenant_id, None))
        # An old yes does no harm, so nobody waits for a newer one: rag finds nothing and passes the upgrade on.
        return True if known is not None and known[1] else await asyncio.shield(asking)

    async def _ask(self, tenant_id: str) -> bool:
        try:
            answer = await self._http.get(f"/internal/tenants/{tenant_id}/documents/exists", timeout=_EXIST_TIMEOUT)
            answer.raise_for_status()
            exist = DocumentsExist.model_validate_json(answer.content).exist
        except (httpx.HTTPError, ValidationError):
            exist = True
        self._remember(tenant_id, exist)
        return exist

    async def submit(
        self, tenant_id: str, *, document_id: str, title: str, filename: str, media_type: str, content: bytes
    ) -> DocumentView:
        """Takes a document in. The same `document_id` twice is one document; MadeBefore when that has been deleted."""
        params = {
            "tenantId": tenant_id,
            "documentId": document_id,
            "title": title,
            "filename": filename,
            "mediaType": media_type,
        }
        headers = {"Content-Type": "application/octet-stream"}
        try:
            answer = await self._send("POST", "/internal/documents", params=params, content=content, headers=headers)
        except ProblemError as refused:
            if refused.problem is CONFLICT:
                raise MadeBefore(CONFLICT, refused.detail) from None
            raise
        view = _parsed(DocumentView, answer)
        self._remember(tenant_id, exist=True)
        return view

    async def page(self, tenant_id: str, *, limit: int, before: str | None) -> list[DocumentView]:
        params: dict[str, Any] = {"tenantId": tenant_id, "limit": limit} | ({"before": before} if before else {})
        return _parsed(DocumentPage, await self._send("GET", "/internal/documents", params=params)).items

    async def find(self, tenant_id: str, document_id: str) -> DocumentView:
        answer = await self._send("GET", f"/internal/documents/{document_id}", params={"tenantId": tenant_id})
        return _parsed(DocumentView, answer)

    async def delete(self, tenant_id: str, document_id: str) -> None:
        await self._send("DELETE", f"/internal/documents/{document_id}", params={"tenantId": tenant_id})

    async def search(self, tenant_id: str, search: DocumentSearch) -> DocumentHits:
        answer = await self._send(
            "POST",
            "/internal/documents/search",
            params={"tenantId": tenant_id},
            content=search.to_json(),
            headers={"Content-Type": "application/json"},
        )
        return _parsed(DocumentHits, answer)

    def _remember(self, tenant_id: str, exist: bool) -> None:
        self._known[tenant_id] = (time.monotonic(), exist)
        self._known.move_to_end(tenant_id)
        if len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = await retry_once_on_disconnect(lambda: self._http.request(method, path, **options))
        except httpx.HTTPError:
            raise _unavailable() from None
        if answer.is_success:
            return answer
        raise _passed_on(answer)


def _parsed(model: type[ModelT], answer: httpx.Response) -> ModelT:
    try:
        return model.model_validate_json(answer.content)
    except ValidationError:
        raise _unavailable() from None


def _unavailable() -> ProblemError:
    return ProblemError(UNAVAILABLE, "Documents cannot be reached right now.", headers={"Retry-After": "2"})


def _passed_on(answer: httpx.Response) -> ProblemError:
    """What rag refused, if it is about the request; everything else is not the client's business."""
    try:
        body = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, Mapping) or body.get("code") not in _PASSED_ON:
        return _unavailable()
    problem = PROBLEMS[body["code"]]
    if problem is NOT_FOUND:
        return ProblemError(NOT_FOUND, "There is no such document.")
    extra = {name: body[name] for name in _QUOTA_FIELDS if name in body} if problem is QUOTA_EXCEEDED else {}
    return ProblemError(
        problem,
        str(body.get("detail") or problem.title)[:_LONGEST_DETAIL],
        errors=_fields(body),
        extra=extra,
        headers={"Retry-After": answer.headers.get("Retry-After", "5")} if problem is QUOTA_EXCEEDED else None,
    )


def _fields(body: Mapping[str, Any]) -> list[FieldProblem]:
    try:
        return [FieldProblem.model_validate(entry) for entry in body.get("errors") or []]
    except (ValidationError, TypeError):
        return []
