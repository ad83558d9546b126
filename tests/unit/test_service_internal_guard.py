"""InternalGuard checks the token and the size of the body before it reads the body."""

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import APIRouter, Request
from pydantic import BaseModel

from services.gateway.identity.caller import Role
from services.gateway.web.public_app import public_app
from shared.contracts.internal_http import INTERNAL_TOKEN_HEADER
from shared.service.http import internal_app
from shared.service.settings import ObservabilitySettings
from shared.service.telemetry import Telemetry
from tests.unit.test_gateway_public_http import breaks, never_identifies

TOKEN = {INTERNAL_TOKEN_HEADER: "inside"}
JSON = {"Content-Type": "application/json"}
PIECE = b" " * 1000


class Question(BaseModel):
    amount: int


class Sent:
    """A body without a declared length; `pieces` counts the pieces that were read."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.pieces = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self._most):
            self.pieces += 1
            yield PIECE


def routes() -> APIRouter:
    router = APIRouter(prefix="/internal")

    @router.post("/questions")
    async def ask(question: Question) -> int:
        return question.amount

    @router.post("/files")
    async def take(request: Request) -> int:
        return sum([len(piece) async for piece in request.stream()])

    return router


def telemetry() -> Telemetry:
    return Telemetry("example", ObservabilitySettings.model_validate({}))


def service(token: str | None = TOKEN[INTERNAL_TOKEN_HEADER]) -> httpx.AsyncClient:
    app = internal_app(telemetry(), internal_token=token, routers=[routes()], most_body_bytes=10_000)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://example")


def gateway() -> httpx.AsyncClient:
    app = public_app(
        telemetry(),
        identify=never_identifies,
        trusted_proxies=(),
        upgrade=breaks,
        upgrade_role=Role.MEMBER,
        routers=[routes()],
        asyncapi={},
        event_examples={},
        allowed_origins=[],
        internal_token="inside",
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


@pytest.mark.parametrize("headers", [{}, {INTERNAL_TOKEN_HEADER: "outside"}, {INTERNAL_TOKEN_HEADER: ""}])
@pytest.mark.parametrize("path", ["/internal/questions", "/internal/files", "/internal/nowhere", "/%69nternal/files"])
async def test_without_a_token_the_body_is_not_read(path: str, headers: dict[str, str]) -> None:
    for client in (service(), service(token=None), gateway()):
        async with client:
            sent = Sent(1)
            for body in (sent, b"{", b""):
                answer = await client.post(path, content=body, headers=headers | JSON)
                assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
                assert answer.headers["content-type"] == "application/problem+json"
                assert INTERNAL_TOKEN_HEADER in answer.headers["www-authenticate"]
            assert sent.pieces == 0


async def test_the_gateway_refuses_with_its_own_problem_format() -> None:
    async with gateway() as client:
        for headers, code in (({}, "unauthenticated"), (TOKEN, "too_large")):
            answer = await client.post("/internal/files", content=b"x" * 3_000_000, headers=headers)
            assert answer.json()["code"] == code
            assert answer.json()["requestId"] == answer.headers["x-request-id"]
            assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/internal/questions", "/internal/files"])
async def test_a_body_over_the_limit_is_not_read_to_its_end(path: str) -> None:
    async with service() as client:
        announced = Sent(11)
        length = {"Content-Length": str(11 * len(PIECE))}
        for sent, headers, read in ((announced, length, 0), (Sent(1000), {}, 11)):
            answer = await client.post(path, content=sent, headers=TOKEN | JSON | headers)
            assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
            assert sent.pieces == read


async def test_a_body_within_the_limit_is_accepted() -> None:
    async with service() as client:
        assert (await client.post("/internal/files", content=Sent(10), headers=TOKEN)).json() == 10_000
        assert (await client.post("/internal/files", content=b"x" * 10_000, headers=TOKEN)).json() == 10_000
        assert (await client.post("/internal/questions", json={"amount": 3}, headers=TOKEN)).json() == 3


async def test_other_routes_need_no_token() -> None:
    async with service() as client:
        assert (await client.get("/health/live")).status_code == 200
        assert (await client.get("/internals")).status_code == 404
