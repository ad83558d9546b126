"""HTTP that every process serves: health, metrics, and internal routes behind the internal token."""

import hmac
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import orjson
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from opentelemetry.trace import SpanKind
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.contracts.internal_http import INTERNAL_TOKEN_HEADER
from shared.contracts.problems import (
    INTERNAL_ERROR,
    INVALID_HEADER,
    INVALID_REQUEST,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    TOO_LARGE,
    UNAUTHENTICATED,
)
from shared.observability.logs import get_logger
from shared.observability.metrics import HTTP_LATENCY, HTTP_REQUESTS
from shared.observability.tracing import span_from_traceparent
from shared.service.problems import problem_of_status, problem_response, request_id_of
from shared.service.telemetry import Telemetry

MOST_BODY_BYTES = 2 * 1024 * 1024
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_FILE_METHODS = ("GET", "HEAD")
_UNTRACED = ("/health/", "/metrics")
_CHALLENGE = {"WWW-Authenticate": f'{INTERNAL_TOKEN_HEADER} realm="prompt-upgrader-services"'}
_DETAILS = {
    NOT_FOUND: "There is nothing at this address.",
    METHOD_NOT_ALLOWED: "This address does not support the method; see Allow.",
}

_log = get_logger("http")


def internal_app(
    telemetry: Telemetry,
    *,
    internal_token: str | None,
    routers: Sequence[APIRouter] = (),
    most_body_bytes: int = MOST_BODY_BYTES,
) -> FastAPI:
    """The HTTP application of a service that only other services call.

    `routers` hold its routes under `/internal`. They require `internal_token`, with None they refuse every caller, and
    their bodies have at most `most_body_bytes`. Raises ValueError for a route outside `/internal`.
    """
    app = FastAPI(title=telemetry.service, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(InternalGuard, token=internal_token, most_body_bytes=most_body_bytes)
    app.add_middleware(RequestTelemetry)
    app.include_router(health_routes(telemetry))
    for router in routers:
        if any(not getattr(route, "path", "").startswith("/internal") for route in router.routes):
            raise ValueError("internal routes start with /internal")
        app.include_router(router)
    app.add_exception_handler(HTTPException, answer_http_exception)
    app.add_exception_handler(RequestValidationError, _answer_invalid_request)
    app.add_exception_handler(Exception, _answer_unexpected_error)
    return app


def bad_request(detail: str) -> Response:
    """The answer to bytes that are not a valid HTTP request."""
    return problem_response(INVALID_HEADER, detail)


class InternalGuard:
    """ASGI middleware: `/internal` requires `token`, with None it refuses every caller, and limits request bodies.

    A body without a length that exceeds `most_body_bytes` while the application reads it raises HTTPException 413
    there; the application has to answer it.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, most_body_bytes: int = MOST_BODY_BYTES) -> None:
        self._app = app
        self._token = token.encode() if token else None
        self._most_body_bytes = most_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not (scope["path"] + "/").startswith("/internal/"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal_of(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
        else:
            await self._app(scope, self._counting(receive), send)

    def _refusal_of(self, scope: Scope) -> Response | None:
        headers, request_id = Headers(scope=scope), request_id_of(scope)
        if not self._has_token(headers):
            detail = "This is for services only."
            return problem_response(UNAUTHENTICATED, detail, _CHALLENGE, request_id=request_id)
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._most_body_bytes:
            detail = f"The body must not be larger than {self._most_body_bytes} bytes."
            return problem_response(TOO_LARGE, detail, request_id=request_id)
        return None

    def _has_token(self, headers: Headers) -> bool:
        given = headers.getlist(INTERNAL_TOKEN_HEADER)
        if self._token is None or len(given) != 1:
            return False
        return hmac.compare_digest(given[0].encode("latin-1"), self._token)

    def _counting(self, receive: Receive) -> Receive:
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._most_body_bytes:
                raise HTTPException(TOO_LARGE.status)
            return message

        return counted


def health_routes(telemetry: Telemetry) -> APIRouter:
    """`/health/live`, `/health/ready` (503 while not ready) and `/metrics` (Bearer METRICS_TOKEN where set)."""
    router = APIRouter(include_in_schema=False)

    @router.get("/health/live")
    async def live() -> Response:
        return Response(orjson.dumps({"status": "live", "service": telemetry.service}), media_type="application/json")

    @router.get("/health/ready")
    async def ready() -> Response:
        ok, checks = await telemetry.health.readiness()
        body = {"status": "ready" if ok else "not ready", "service": telemetry.service, "checks": checks}
        return Response(orjson.dumps(body), 200 if ok else 503, media_type="application/json")

    @router.get("/metrics")
    async def metrics(request: Request) -> Response:
        expected = telemetry.metrics_token
        given = request.headers.get("authorization", "")
        if expected and not hmac.compare_digest(given.encode(), f"Bearer {expected}".encode()):
            return problem_response(UNAUTHENTICATED, headers={"WWW-Authenticate": "Bearer"})
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return router


class RequestTelemetry:
    """ASGI middleware: counts and times requests by route template and opens their span."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        started = perf_counter()

        async def record_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if scope["path"].startswith(_UNTRACED):
                await self._app(scope, receive, record_status)
                return
            traceparent = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"traceparent"), None)
            with span_from_traceparent(scope["method"], traceparent, kind=SpanKind.SERVER) as span:
                await self._app(scope, receive, record_status)
                if span is not None:
                    span.update_name(f"{scope['method']} {_route_of(scope)}")
                    span.set_attributes({"http.route": _route_of(scope), "http.response.status_code": status})
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "OTHER"
            route = _route_of(scope)
            HTTP_REQUESTS.labels(route, method, str(status)).inc()
            HTTP_LATENCY.labels(route, method).observe(perf_counter() - started)


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """The problem for an error of the framework: unknown address, refused method, invalid form."""
    assert isinstance(error, HTTPException)  # noqa: S101 -- registered for nothing else
    problem = problem_of_status(error.status_code)
    headers = {"Allow": _allowed_methods(request)} if problem is METHOD_NOT_ALLOWED else error.headers
    detail = _DETAILS.get(problem, problem.title + ".")
    return problem_response(problem, detail, headers, request_id=request_id_of(request.scope))


def _allowed_methods(request: Request) -> str:
    """The value of `Allow`: the methods of all routes with the request's path.

    The framework names only those of the first route.
    """
    # A copy without the entries that the router has left in the scope, which would disturb the next match.
    scope = {key: request.scope[key] for key in ("type", "path", "root_path", "headers") if key in request.scope}
    routes = [route for route in request.app.routes if not isinstance(route, Mount)]
    allowed = [
        method
        for method in _METHODS
        if any(route.matches(scope | {"method": method})[0] is Match.FULL for route in routes)
    ]
    # Without a route the refusal came from a mounted folder of files.
    return ", ".join(allowed or _FILE_METHODS)


async def _answer_invalid_request(request: Request, error: Exception) -> Response:
    fields = error.errors() if isinstance(error, RequestValidationError) else []
    places = ", ".join(".".join(str(part) for part in item["loc"]) for item in fields[:10])
    return problem_response(INVALID_REQUEST, f"not valid: {places}")


async def _answer_unexpected_error(request: Request, error: Exception) -> Response:
    _log.error("request failed", route=_route_of(request.scope), exc_info=error)
    return problem_response(INTERNAL_ERROR)


def _route_of(scope: Scope) -> str:
    path: Any = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) and path else "unmatched"
