"""Who may use what is under `/internal`, and how much they may send: decided before anything is read or routed."""

import hmac
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.contracts.internal_http import INTERNAL_TOKEN_HEADER
from shared.contracts.problems import TOO_LARGE, UNAUTHENTICATED, Problem

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
