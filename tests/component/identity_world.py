"""Helpers of the identity tests: clients with tokens, gateway replicas that accept them, and a JWKS server."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deploy.local.ports import free_port
from deploy.local.servers import ServerProcess
from tests.component.gateway_world import World
from tests.http_server import served
from tests.unit.jwt_keys import AUDIENCE, ISSUER, SECRET, document_of, secret_token

# A high limit, because other tests cover failed authentications.
TOKEN_SETTINGS = {"JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE, "RATE_LIMIT_PER_MINUTE": "100000"}


@contextlib.asynccontextmanager
async def replica(world: World, **environment: str) -> AsyncIterator[ServerProcess]:
    """Another gateway on the same store. Without `environment` it accepts HS256 tokens."""
    gateway = world.new_gateway(**TOKEN_SETTINGS, **(environment or {"JWT_SECRET": SECRET}))
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop()


def person(gateway: ServerProcess, subject: str, workspace_id: str | None = None) -> httpx.AsyncClient:
    """A client with a token for that subject."""
    return with_token(gateway, secret_token(sub=subject), workspace_id)


def with_token(gateway: ServerProcess, token: str, workspace_id: str | None = None) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {token}"} | ({"X-Workspace-Id": workspace_id} if workspace_id else {})
    return httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=30)


def with_key(gateway: ServerProcess, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=gateway.url, headers={"X-API-Key": key}, timeout=30)


async def home_of(client: httpx.AsyncClient) -> str:
    """The id of the personal workspace of the client's person."""
    items = (await client.get("/api/workspaces")).json()["items"]
    return str(next(item["id"] for item in items if item["personal"]))


def visible(answer: httpx.Response) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and body of an answer, without request id and date, to compare answers with."""
    headers = {name: value for name, value in answer.headers.items() if name not in ("x-request-id", "date")}
    body = answer.json() if answer.content else {}
    body.pop("requestId", None)
    return answer.status_code, headers, body


class KeyServer:
    """Publishes keys like an identity provider, and counts the requests."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.fetches = 0
        self.out = False
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/keys"

    async def _keys(self, _: Request) -> Response:
        self.fetches += 1
        if self.out:
            return Response(status_code=503)
        return Response(document_of(*self.entries), media_type="application/json")

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["KeyServer"]:
        async with served(Starlette(routes=[Route("/keys", self._keys)]), self.port):
            yield self
