"""HTTP that every process serves: health, metrics, and internal routes behind the internal token."""

import hmac
from collections.abc import Callable, Sequence
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

from shared.contracts import problems
from shared.contracts.internal_http import INTERNAL_TOKEN_HEADER
from shared.contracts.problems import TOO_LARGE, UNAUTHENTICATED, Problem
from shared.contracts.upgrade_http import FieldProblem
from shared.observability.logs import get_logger
from shared.observability.metrics import HTTP_LATENCY, HTTP_REQUESTS
from shared.observability.tracing import span_from_traceparent
from shared.service.telemetry import Telemetry

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_READING = ("GET", "HEAD")


def allowed_methods(request: Request) -> str:
    """The value of `Allow` for a request whose method was refused: the methods of all routes of its path.

    The application itself names those of the first route only.
    """
    # Without what the application keeps in a scope about the route that has refused.
    asked = {key: request.scope[key] for key in ("type", "path", "root_path", "headers") if key in request.scope}
    routes = [route for route in request.app.routes if not isinstance(route, Mount)]
    known = [
        method
        for method in METHODS
        if any(route.matches(asked | {"method": method})[0] is Match.FULL for route in routes)
    ]
    # Where there is no route, a folder of files has refused.
    return ", ".join(known or _READING)


MOST_BODY_BYTES = 2 * 1024 * 1024
_CHALLENGE = {"WWW-Authenticate": f'{INTERNAL_TOKEN_HEADER} realm="prompt-upgrader-services"'}

Refusal = Callable[[Scope, Problem, str, dict[str, str]], Response]
"""Makes the answer to a request from the problem, its detail and the headers of the answer."""


class InternalGuard:
    """ASGI: lets only holders of `token` in (with None nobody), with bodies of at most `most_body_bytes`.

    The application has to make a problem of HTTPException 413, which it gets where a body turns out to be too large
    while it is read.
    """

    def __init__(
        self, app: ASGIApp, *, token: str | None, refusal: Refusal, most_body_bytes: int = MOST_BODY_BYTES
    ) -> None:
        self._app = app
        self._token = token.encode() if token else None
        self._refusal = refusal
        self._most_body_bytes = most_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not (scope["path"] + "/").startswith("/internal/"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if not self._has_token(headers):
            refused = self._refusal(scope, UNAUTHENTICATED, "This is for services only.", _CHALLENGE)
            await refused(scope, receive, send)
            return
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._most_body_bytes:
            detail = f"The body must not be larger than {self._most_body_bytes} bytes."
            await self._refusal(scope, TOO_LARGE, detail, {})(scope, receive, send)
            return
        await self._app(scope, self._counting(receive), send)

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


_UNTRACED = ("/health/", "/metrics")
_log = get_logger("http")


def problem_response(
    problem: problems.Problem,
    detail: str = "",
    headers: dict[str, str] | None = None,
    errors: Sequence[FieldProblem] = (),
) -> Response:
    """An RFC 9457 answer; `errors` name the fields that are wrong."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": problem.title,
        "status": problem.status,
        "detail": detail or problem.title,
        "code": problem.code,
    }
    if errors:
        body["errors"] = [error.to_document() for error in errors]
    return Response(orjson.dumps(body), problem.status, headers, problems.PROBLEM_MEDIA_TYPE)


def bad_request(detail: str) -> Response:
    """The answer to what is no HTTP request."""
    return problem_response(problems.INVALID_HEADER, detail)


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
            return problem_response(problems.UNAUTHENTICATED, headers={"WWW-Authenticate": "Bearer"})
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return router


class RequestTelemetry:
    """ASGI middleware: counts and times requests by route template, and puts each in its trace."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        started = perf_counter()

        async def watching(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if scope["path"].startswith(_UNTRACED):
                await self._app(scope, receive, watching)
                return
            traceparent = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"traceparent"), None)
            with span_from_traceparent(scope["method"], traceparent, kind=SpanKind.SERVER) as span:
                await self._app(scope, receive, watching)
                if span is not None:
                    span.update_name(f"{scope['method']} {_route_of(scope)}")
                    span.set_attributes({"http.route": _route_of(scope), "http.response.status_code": status})
        finally:
            method = scope["method"] if scope["method"] in METHODS else "OTHER"
            route = _route_of(scope)
            HTTP_REQUESTS.labels(route, method, str(status)).inc()
            HTTP_LATENCY.labels(route, method).observe(perf_counter() - started)


def internal_app(
    telemetry: Telemetry,
    *,
    internal_token: str | None,
    routers: Sequence[APIRouter] = (),
    most_body_bytes: int = MOST_BODY_BYTES,
) -> FastAPI:
    """The HTTP side of a service that only other services talk to; `routers` hold its routes under `/internal`.

    They are for holders of `internal_token` (with None for nobody) and take bodies of at most `most_body_bytes`.
    """
    app = FastAPI(title=telemetry.service, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(
        InternalGuard,
        token=internal_token,
        refusal=lambda _, problem, detail, headers: problem_response(problem, detail, headers),
        most_body_bytes=most_body_bytes,
    )
    app.add_middleware(RequestTelemetry)
    app.include_router(health_routes(telemetry))
    for router in routers:
        if any(not getattr(route, "path", "").startswith("/internal") for route in router.routes):
            raise ValueError("internal routes start with /internal")
        app.include_router(router)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, _on_error)
    return app


def _route_of(scope: Scope) -> str:
    path: Any = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) and path else "unmatched"


async def _on_http_exception(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    known = next((problem for problem in problems.PROBLEMS.values() if problem.status == status), None)
    if known is None:
        known = problems.INTERNAL_ERROR if status >= 500 else problems.INVALID_REQUEST
    headers = {"Allow": allowed_methods(request)} if known is problems.METHOD_NOT_ALLOWED else None
    return problem_response(known, headers=headers)


async def _on_invalid(request: Request, error: Exception) -> Response:
    fields = error.errors() if isinstance(error, RequestValidationError) else []
    places = ", ".join(".".join(str(part) for part in item["loc"]) for item in fields[:10])
    return problem_response(problems.INVALID_REQUEST, f"not valid: {places}")


async def _on_error(request: Request, error: Exception) -> Response:
    _log.error("request failed", route=_route_of(request.scope), exc_info=error)
    return problem_response(problems.INTERNAL_ERROR)
