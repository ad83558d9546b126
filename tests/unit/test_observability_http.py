"""Health, metrics and the guard of internal routes."""

import asyncio

import httpx
import pytest
from fastapi import APIRouter
from pydantic import BaseModel

from shared.contracts.internal_http import INTERNAL_TOKEN_HEADER
from shared.observability.tracing import current_trace_id
from shared.service.http import internal_app
from shared.service.settings import ObservabilitySettings
from shared.service.telemetry import Telemetry

INSIDE = "inside"


class Question(BaseModel):
    amount: int


def telemetry(**settings: str) -> Telemetry:
    return Telemetry("example", ObservabilitySettings.model_validate(settings))


def client(owner: Telemetry, token: str | None = INSIDE) -> httpx.AsyncClient:
    router = APIRouter(prefix="/internal")

    @router.post("/questions")
    async def ask(question: Question) -> dict[str, str | int | None]:
        if question.amount < 0:
            raise RuntimeError("jane.doe@example.com")
        return {"amount": question.amount, "trace": current_trace_id()}

    app = internal_app(owner, internal_token=token, routers=[router])
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://example")


async def nothing() -> None: ...


async def test_live_and_ready() -> None:
    owner = telemetry()
    async with client(owner) as http:
        assert (await http.get("/health/live")).status_code == 200
        assert (await http.get("/health/ready")).json()["checks"] == {"process": "starting"}
        owner.health.mark_started()
        answer = await http.get("/health/ready")
        assert (answer.status_code, answer.json()["status"]) == (200, "ready")
        owner.health.mark_draining()
        answer = await http.get("/health/ready")
        assert (answer.status_code, answer.json()["checks"]) == (503, {"process": "draining"})
        assert (await http.get("/health/live")).status_code == 200


async def test_a_failing_check_makes_unready_and_reveals_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.service.telemetry.CHECK_SECONDS", 0.02)
    owner = telemetry()
    owner.health.mark_started()

    async def leaking() -> None:
        raise ConnectionError("redis://user:hunter22@cache")

    async def hanging() -> None:
        await asyncio.Event().wait()

    async def fine() -> None: ...

    for name, check in (("redis", leaking), ("store", hanging), ("model", fine)):
        owner.health.add_check(name, check)
    async with client(owner) as http:
        answer = await http.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json()["checks"] == {
        "process": "ok",
        "redis": "ConnectionError",
        "store": "timeout",
        "model": "ok",
    }


async def test_metrics_require_the_token_where_set() -> None:
    async with client(telemetry()) as http:
        await http.get("/health/live")
        answer = await http.get("/metrics")
    assert 'http_requests_total{method="GET",route="/health/live",status="200"}' in answer.text
    async with client(telemetry(METRICS_TOKEN="scrape")) as http:
        assert (await http.get("/metrics")).status_code == 401
        assert (await http.get("/metrics", headers={"Authorization": "Bearer nope"})).status_code == 401
        assert (await http.get("/metrics", headers={"Authorization": "Bearer scrape"})).status_code == 200


@pytest.mark.parametrize(("expected", "given"), [("inside", None), ("inside", "outside"), (None, ""), (None, "x")])
async def test_internal_routes_require_the_token(expected: str | None, given: str | None) -> None:
    headers = {} if given is None else {INTERNAL_TOKEN_HEADER: given}
    async with client(telemetry(), expected) as http:
        answer = await http.post("/internal/questions", json={"amount": 1}, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "unauthenticated"


async def test_internal_routes_continue_the_trace_and_answer_problems() -> None:
    headers = {INTERNAL_TOKEN_HEADER: "inside", "traceparent": f"00-{'a' * 32}-{'b' * 16}-00"}
    async with client(telemetry()) as http:
        answer = await http.post("/internal/questions", json={"amount": 1}, headers=headers)
        assert answer.json() == {"amount": 1, "trace": "a" * 32}
        wrong = await http.post("/internal/questions", json={"amount": "x"}, headers=headers)
        assert (wrong.status_code, wrong.json()["code"]) == (422, "invalid_request")
        assert "body.amount" in wrong.json()["detail"]
        broken = await http.post("/internal/questions", json={"amount": -1}, headers=headers)
        assert (broken.status_code, broken.json()["code"]) == (500, "internal_error")
        assert "jane" not in broken.text
        assert (await http.get("/nowhere")).json()["code"] == "not_found"
        metrics = (await http.get("/metrics")).text
    assert 'http_requests_total{method="POST",route="/internal/questions",status="500"}' in metrics
    assert 'route="unmatched"' in metrics
    assert "nowhere" not in metrics


async def test_a_refused_method_gets_all_allowed_methods() -> None:
    router = APIRouter(prefix="/internal")
    for method in ("GET", "DELETE"):
        router.add_api_route("/answers/{id}", nothing, methods=[method])
    app = internal_app(telemetry(), internal_token=INSIDE, routers=[router])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://example") as http:
        answer = await http.put("/internal/answers/7", headers={INTERNAL_TOKEN_HEADER: INSIDE})
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "DELETE, GET"


def test_a_router_outside_internal_is_refused() -> None:
    router = APIRouter()

    @router.get("/open")
    async def anybody() -> dict[str, str]:
        return {}

    with pytest.raises(ValueError, match="/internal"):
        internal_app(telemetry(), internal_token="t", routers=[router])
