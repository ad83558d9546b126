"""The outermost layer of the gateway's HTTP: request ids, security headers, and an answer for whatever went wrong."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.http.client_address import Network, came_by_https
from services.gateway.http.problem_details import problem_response, request_id_of
from services.gateway.http.problems import ProblemError
from shared.contracts.contract import new_id
from shared.contracts.problems import INTERNAL_ERROR, INVALID_HEADER
from shared.observability.logs import get_logger

_LONGEST_REQUEST_ID = 128
_SECURITY_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)
_REQUEST_ID, _CONTENT_POLICY = b"x-request-id", b"content-security-policy"
_OURS = frozenset({_REQUEST_ID, _CONTENT_POLICY, *(name for name, _ in _SECURITY_HEADERS)})
_ONLY_HTTPS = (b"strict-transport-security", b"max-age=31536000")
_API_CONTENT_POLICY = b"default-src 'none'; frame-ancestors 'none'"
# The docs pages carry their own scripts and styles, and load nothing from elsewhere.
_DOCS_CONTENT_POLICY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data:; frame-ancestors 'none'"
)
_DOCS_PATHS = ("/docs", "/static-offline-docs")

log = get_logger(__name__)


class Edge:
    """ASGI: gives each request an id and each answer its headers."""

    def __init__(self, app: ASGIApp, trusted_proxies: Sequence[Network] = ()) -> None:
        self._app = app
        self._trusted_proxies = trusted_proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        by_https = came_by_https(scope, self._trusted_proxies)
        request_id = sensible_request_id(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        policy = _DOCS_CONTENT_POLICY if scope["path"].startswith(_DOCS_PATHS) else _API_CONTENT_POLICY

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [header for header in message.get("headers", ()) if header[0].lower() not in _OURS]
                headers += _headers(request_id, policy)
                if by_https:  # over plain HTTP it means nothing
                    headers.append(_ONLY_HTTPS)
                message["headers"] = headers
            await send(message)

        await self._app(scope, receive, with_headers)


class LastResort:
    """ASGI: an error that nobody expected becomes a problem that tells nothing of the inside."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answered = False

        async def watching(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._app(scope, receive, watching)
        except Exception as error:
            if scope["type"] != "http":
                raise
            request = Request(scope)
            log.error("request_failed", request_id=request_id_of(request), method=scope["method"], exc_info=error)
            if not answered:
                await problem_response(request, unexpected_problem())(scope, receive, send)


def bad_request(detail: str) -> Response:
    """The answer to what is no HTTP request and never gets to the application."""
    request_id = new_id()
    scope: Scope = {"type": "http", "state": {"request_id": request_id}}
    answer = problem_response(Request(scope), ProblemError(INVALID_HEADER, detail))
    answer.raw_headers += _headers(request_id, _API_CONTENT_POLICY)
    return answer


def unexpected_problem() -> ProblemError:
    """The problem of an error that nobody expected; tells nothing of the inside."""
    return ProblemError(INTERNAL_ERROR, "Something went wrong here. The request id helps to find it.")


def _headers(request_id: str, policy: bytes) -> list[tuple[bytes, bytes]]:
    return [(_REQUEST_ID, request_id.encode()), (_CONTENT_POLICY, policy), *_SECURITY_HEADERS]


def sensible_request_id(given: str | None) -> str:
    """The client's request id when it is 1 to 128 printable characters, else a new one."""
    sensible = given and len(given) <= _LONGEST_REQUEST_ID and given.isascii() and given.isprintable() and given.strip()
    return given.strip() if sensible and given else new_id()
