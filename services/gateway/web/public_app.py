"""Builds the gateway's public HTTP application: routes, documentation, middleware, and every error as a problem."""

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
from services.gateway.http.edge import Edge, UnexpectedErrors, internal_error
from services.gateway.http.problem_details import error_response, field_path
from services.gateway.http.problems import FIELDS_NOT_VALID, ProblemError
from services.gateway.identity.caller import Identify, Role
from services.gateway.web.event_docs import event_page
from services.gateway.web.openapi import UPGRADE_PATH, openapi_document
from shared.contracts.problems import INVALID_REQUEST
from shared.contracts.upgrade_http import FieldProblem
from shared.service.http import InternalGuard, RequestTelemetry, answer_http_exception, health_routes
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

Endpoint = Callable[[Request], Awaitable[Response]]


def public_app(
    telemetry: Telemetry,
    *,
    identify: Identify,
    trusted_proxies: Sequence[Network],
    upgrade: Endpoint,
    upgrade_role: Role,
    routers: Sequence[APIRouter],
    asyncapi: Mapping[str, Any],
    event_examples: Mapping[str, Any],
    allowed_origins: Sequence[str],
    internal_token: str | None,
) -> ASGIApp:
    """The whole HTTP of the gateway.

    `upgrade` answers `POST /api/upgrade` outside of FastAPI and requires `upgrade_role` itself. `event_examples` are
    JSON by topic. Routes under `/internal` require `internal_token`.
    """
    app = FastAPIOffline(
        title="Prompt Upgrader",
        version=VERSION,
        description="Upgrades the prompts that people type.",
        docs_url="/docs",
        redoc_url=None,
        redirect_slashes=False,
    )
    # Read by the role requirements of routes and by `client_address`.
    app.state.identify = identify
    app.state.trusted_proxies = trusted_proxies
    hot_route = _HotRoute(app, UPGRADE_PATH, upgrade)
    for router in routers:
        app.include_router(router)
    app.include_router(health_routes(telemetry))
    app.include_router(_event_docs(asyncapi, event_examples))
    app.add_exception_handler(ProblemError, _answer_problem)
    app.add_exception_handler(HTTPException, answer_http_exception)
    app.add_exception_handler(RequestValidationError, _answer_invalid_request)
    app.add_exception_handler(Exception, _answer_unexpected_error)
    document: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not document:
            document.update(openapi_document(app, routers, upgrade_role))
        return document

    app.openapi = openapi  # type: ignore[method-assign]
    guarded = InternalGuard(hot_route, token=internal_token)
    outer: ASGIApp = UnexpectedErrors(RequestTelemetry(guarded))
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
    """ASGI: answers `POST` on one path without FastAPI, whose layers cost more time than the use case."""

    def __init__(self, app: FastAPI, path: str, endpoint: Endpoint) -> None:
        self._app = app
        self._path = path
        self._endpoint = endpoint
        # The application gets the route too and answers its refused methods.
        self._route = Route(path, endpoint, methods=["POST"])
        app.router.routes.insert(0, self._route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] != self._path:
            await self._app(scope, receive, send)
            return
        scope["app"] = self._app
        scope["route"] = self._route  # labels the request metrics
        request = Request(scope, receive, send)
        try:
            response = await self._endpoint(request)
        except ProblemError as error:
            response = error_response(request, error)
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


async def _answer_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)  # noqa: S101 -- registered for nothing else
    return error_response(request, error)


async def _answer_unexpected_error(request: Request, error: Exception) -> Response:
    # Without this handler Starlette answers in plain text; it raises the error again, so UnexpectedErrors logs it.
    return internal_error(request.scope)


async def _answer_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 -- registered for nothing else
    fields = [FieldProblem(field=field_path(e["loc"][1:]), detail=e["msg"].rstrip(".") + ".") for e in error.errors()]
    return error_response(request, ProblemError(INVALID_REQUEST, FIELDS_NOT_VALID, errors=fields))
