"""The gateway's public HTTP application: routes, documentation, and every error as a problem."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import orjson
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from services.gateway.http.client_address import Network
from services.gateway.http.edge import Edge, LastResort, unexpected_problem
from services.gateway.http.problem_details import field_path, problem_response
from services.gateway.http.problems import ProblemError
from services.gateway.identity.caller import Identify
from services.gateway.web.event_docs import event_page
from services.gateway.web.openapi import openapi_document
from shared.contracts.problems import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    PROBLEMS,
    Problem,
)
from shared.contracts.upgrade_http import FieldProblem
from shared.service.http import InternalGuard, RequestTelemetry, allowed_methods, health_routes
from shared.service.telemetry import Telemetry

VERSION = "0.1.0"
_EXPOSED_HEADERS = (
    "Location",
    "Preference-Applied",
    "Idempotent-Replayed",
    "X-Request-Id",
    "Retry-After",
    "RateLimit",
    "RateLimit-Policy",
    "WWW-Authenticate",
)
_ALLOWED_HEADERS = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "Last-Event-ID",
    "Prefer",
    "X-API-Key",
    "X-Request-Id",
    "X-Workspace-Id",
    "traceparent",
)
_DETAILS = {
    NOT_FOUND: "There is nothing at this address.",
    METHOD_NOT_ALLOWED: "This address does not know the method; see Allow.",
}

Endpoint = Callable[[Request], Awaitable[Response]]


def public_app(
    telemetry: Telemetry,
    *,
    identify: Identify,
    trusted_proxies: Sequence[Network],
    upgrade: Endpoint,
    routers: Sequence[APIRouter],
    asyncapi: Mapping[str, Any],
    event_examples: Mapping[str, Any],
    allowed_origins: Sequence[str],
    internal_token: str | None,
) -> ASGIApp:
    """Everything the gateway serves. `upgrade` answers `POST /api/upgrade` without FastAPI's machinery around it.

    Routes under `/internal` are for holders of `internal_token`.
    """
    app = FastAPIOffline(
        title="Prompt Upgrader",
        version=VERSION,
        description="Upgrades the prompts that people type.",
        docs_url="/docs",
        redoc_url=None,
        redirect_slashes=False,
    )
    # What the requirements of routes ask, and where a client's address is believed from.
    app.state.identify = identify
    app.state.trusted_proxies = trusted_proxies
    hot = _HotRoute(app, "/api/upgrade", upgrade)
    for router in routers:
        app.include_router(router)
    app.include_router(health_routes(telemetry))
    app.include_router(_event_docs(asyncapi, event_examples))
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, _on_unexpected)
    document: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not document:
            document.update(openapi_document(app, routers))
        return document

    app.openapi = openapi  # type: ignore[method-assign]
    guarded = InternalGuard(hot, token=internal_token, refusal=_refusal)
    outer: ASGIApp = LastResort(RequestTelemetry(guarded))
    if allowed_origins:
        outer = CORSMiddleware(
            outer,
            allow_origins=allowed_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=_ALLOWED_HEADERS,
            expose_headers=_EXPOSED_HEADERS,
            max_age=600,
        )
    return Edge(outer, trusted_proxies)


class _HotRoute:
    """ASGI: answers `POST` on one path by itself; the application's layers cost more than the whole use case."""

    def __init__(self, app: FastAPI, path: str, endpoint: Endpoint) -> None:
        self._app = app
        self._path = path
        self._endpoint = endpoint
        # In the application too: it knows what else the path does not allow.
        self._route = Route(path, endpoint, methods=["POST"])
        app.router.routes.insert(0, self._route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] != self._path:
            await self._app(scope, receive, send)
            return
        scope["app"] = self._app
        scope["route"] = self._route  # what the request metrics are labelled with
        request = Request(scope, receive, send)
        try:
            response = await self._endpoint(request)
        except ProblemError as error:
            response = problem_response(request, error)
        await response(scope, receive, send)


def _event_docs(asyncapi: Mapping[str, Any], examples: Mapping[str, Any]) -> APIRouter:
    router = APIRouter(include_in_schema=False)
    body, page = orjson.dumps(asyncapi), event_page(asyncapi, examples)

    @router.get("/")
    async def start() -> Response:
        return RedirectResponse("/docs")

    @router.get("/asyncapi.json")
    async def document() -> Response:
        return Response(body, media_type="application/json")

    @router.get("/docs/events")
    async def events() -> Response:
        return HTMLResponse(page)

    return router


def _refusal(scope: Scope, problem: Problem, detail: str, headers: dict[str, str]) -> Response:
    return problem_response(Request(scope), ProblemError(problem, detail, headers=headers))


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)  # noqa: S101 -- registered for nothing else
    return problem_response(request, error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 -- registered for nothing else
    fallback = INTERNAL_ERROR if error.status_code >= 500 else INVALID_REQUEST
    problem = next((known for known in PROBLEMS.values() if known.status == error.status_code), fallback)
    detail = _DETAILS.get(problem, problem.title + ".")
    headers = {"Allow": allowed_methods(request)} if problem is METHOD_NOT_ALLOWED else error.headers
    return problem_response(request, ProblemError(problem, detail, headers=headers))


async def _on_unexpected(request: Request, error: Exception) -> Response:
    # Without it Starlette answers in plain text, before LastResort hears of the error.
    return problem_response(request, unexpected_problem())


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 -- registered for nothing else
    fields = [FieldProblem(field=field_path(e["loc"][1:]), detail=e["msg"].rstrip(".") + ".") for e in error.errors()]
    return problem_response(request, ProblemError(INVALID_REQUEST, "One or more fields are not valid.", errors=fields))
