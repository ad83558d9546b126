"""The middleware and error handlers of the public HTTP application."""

import httpx
from fastapi import APIRouter
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from services.gateway.identity.caller import Caller, Role
from services.gateway.web.public_app import public_app
from shared.service.settings import ObservabilitySettings
from shared.service.telemetry import Telemetry


async def breaks(request: Request) -> Response:
    raise RuntimeError("/srv/secret.py: card 4111 1111 1111 1111")


async def never_identifies(request: HTTPConnection, workspace_id: str | None = None, *, fresh: bool = False) -> Caller:
    raise NotImplementedError


async def test_an_unexpected_error_becomes_a_problem_without_details() -> None:
    router = APIRouter()
    router.add_api_route("/api/breaks", breaks)
    app = public_app(
        Telemetry("gateway", ObservabilitySettings()),
        identify=never_identifies,
        trusted_proxies=(),
        upgrade=breaks,
        upgrade_role=Role.MEMBER,
        routers=[router],
        asyncapi={},
        event_examples={},
        allowed_origins=[],
        internal_token="inside",
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        for answer in (await client.get("/api/breaks"), await client.post("/api/upgrade")):
            assert answer.status_code == 500
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["code"] == "internal_error"
            assert answer.json()["requestId"] == answer.headers["x-request-id"]
            assert "4111" not in answer.text
