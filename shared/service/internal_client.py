"""HTTP client for the internal routes of another service."""

from collections.abc import Awaitable, Callable, Mapping

import httpx

from shared.contracts.contract import Contract
from shared.contracts.internal_http import INTERNAL_TOKEN_HEADER

_CONNECT_SECONDS = 1.0
_JSON = {"Content-Type": "application/json"}
_BYTES = {"Content-Type": "application/octet-stream"}


async def retry_once_on_disconnect(send: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """Returns the response of `send`, called a second time if the connection broke.

    This happens to kept-alive connections when the server restarts. Raises what httpx raises.
    """
    try:
        return await send()
    except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
        return await send()


class InternalClient:
    """Calls one service's internal routes. Component.

    Requests must be idempotent, since one whose connection broke is sent a second time.
    """

    def __init__(
        self, url: str, internal_token: str, *, timeout_seconds: float = 5.0, max_connections: int = 16
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(timeout_seconds, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=max_connections),
            headers={INTERNAL_TOKEN_HEADER: internal_token},
        )

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        await self._http.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Contract | bytes | None = None,
        timeout_seconds: float | None = None,
    ) -> httpx.Response:
        """Returns the response, whatever its status. Raises httpx.HTTPError when there is none.

        `timeout_seconds` replaces the client's limits for this request.
        """
        content = body.to_json() if isinstance(body, Contract) else body
        headers = None if body is None else _JSON if isinstance(body, Contract) else _BYTES
        timeout = httpx.USE_CLIENT_DEFAULT if timeout_seconds is None else httpx.Timeout(timeout_seconds)
        return await retry_once_on_disconnect(
            lambda: self._http.request(method, path, params=params, content=content, headers=headers, timeout=timeout)
        )
