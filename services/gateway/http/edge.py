"""The outermost ASGI layers of the gateway: request ids, security headers, and answers to unexpected errors."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.http.client_address import Network, came_by_https
from shared.contracts.contract import new_id
from shared.contracts.problems import INTERNAL_ERROR, INVALID_HEADER
from shared.observability.logs import get_logger
from shared.service.problems import problem_response, request_id_of

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
_SET_HERE = frozenset({_REQUEST_ID, _CONTENT_POLICY, *(name for name, _ in _SECURITY_HEADERS)})
_ONLY_HTTPS = (b"strict-transport-security", b"max-age=31536000")
_API_CONTENT_POLICY = b"default-src 'none'; frame-ancestors 'none'"
# The documentation pages contain inline scripts and styles and load nothing from other hosts.
_DOCS_CONTENT_POLICY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data:; frame-ancestors 'none'"
)
_DOCS_PATHS = ("/docs", "/static-offline-docs")

log = get_logger(__name__)


class Edge:
    """ASGI middleware: sets the request's id in its state, and request id and security headers in the answer.

    The id is the client's `X-Request-Id` when that is 1 to 128 printable ASCII characters, else a new one.
    """

    def __init__(self, app: ASGIApp, trusted_proxies: Sequence[Network]) -> None:
        self._app = app
        self._trusted_proxies = trusted_proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        by_https = came_by_https(scope, self._trusted_proxies)
        request_id = _request_id(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        policy = _DOCS_CONTENT_POLICY if scope["path"].startswith(_DOCS_PATHS) else _API_CONTENT_POLICY

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [header for header in message.get("headers", ()) if header[0].lower() not in _SET_HERE]
                headers += _headers(request_id, policy)
                if by_https:  # browsers ignore it over plain HTTP
                    headers.append(_ONLY_HTTPS)
                message["headers"] = headers
            await send(message)

        await self._app(scope, receive, with_headers)


class UnexpectedErrors:
    """ASGI middleware: logs an exception that no layer has handled and answers it with a 500 that tells no details."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answered = False

        async def note_answer(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._app(scope, receive, note_answer)
        except Exception as error:
            if scope["type"] != "http":
                raise
            log.error("request_failed", request_id=request_id_of(scope), method=scope["method"], exc_info=error)
            if not answered:
                await internal_error(scope)(scope, receive, send)


def internal_error(scope: Scope) -> Response:
    """The answer to a request that failed unexpectedly."""
    detail = "Something went wrong here. The request id helps to find it."
    return problem_response(INTERNAL_ERROR, detail, request_id=request_id_of(scope))


def bad_request(detail: str) -> Response:
    """The answer to bytes that are not a valid HTTP request, which do not reach the application."""
    request_id = new_id()
    answer = problem_response(INVALID_HEADER, detail, request_id=request_id)
    answer.raw_headers += _headers(request_id, _API_CONTENT_POLICY)
    return answer


def _headers(request_id: str, policy: bytes) -> list[tuple[bytes, bytes]]:
    return [(_REQUEST_ID, request_id.encode()), (_CONTENT_POLICY, policy), *_SECURITY_HEADERS]


def _request_id(given: str | None) -> str:
    valid = given and len(given) <= _LONGEST_REQUEST_ID and given.isascii() and given.isprintable() and given.strip()
    return given.strip() if valid and given else new_id()
