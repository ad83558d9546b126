"""With a model that fails, hangs or returns nonsense, every upgrade still gets an answer in time."""

import time
from collections.abc import AsyncIterator

import pytest

from shared.contracts.token_bounds import RECENT_MESSAGES
from tests.model_server import Behaviour, ModelServer, Step
from tests.model_server import module_model as module_model
from tests.running_stack import RunningStack

pytestmark = pytest.mark.xdist_group("broken model")

DEADLINE_SECONDS = 12


@pytest.fixture(scope="module")
async def stack(model: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningStack]:
    environment = {
        "OPENAI_BASE_URL": model.url,
        "OPENAI_API_KEY": "scripted",
        "UPGRADE_DEADLINE_SECONDS": str(DEADLINE_SECONDS),
        "MODEL_BREAKER_OPEN_SECONDS": "1",
    }
    async with RunningStack(tmp_path_factory.mktemp("stack"), environment=environment) as running:
        yield running


FAULTS = {
    "429 without Retry-After": Step(status=429),
    "429 with Retry-After": Step(status=429, headers={"Retry-After": "1"}),
    "429 with a Retry-After beyond the deadline": Step(status=429, headers={"Retry-After": "600"}),
    "500": Step(status=500),
    "hang": Step(kind="hang"),
    "garbage": Step(kind="garbage"),
    "empty": Step(kind="empty"),
    "refusal": Step(kind="refusal"),
    "cut": Step(kind="cut"),
    "401": Step(status=401),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_prompt_comes_back_in_time(stack: RunningStack, model: ModelServer, fault: str) -> None:
    model.behaviour = Behaviour(default=FAULTS[fault])
    history = [{"role": "user", "content": "I like roses."}] * (RECENT_MESSAGES + 1)
    body = {"userPrompt": "Plan a garden", "conversationHistory": history}
    started = time.monotonic()
    async with stack.client() as client:
        upgraded = (await client.post("/api/upgrade", json=body, headers={"Prefer": "wait=60"})).json()
    assert time.monotonic() - started < DEADLINE_SECONDS + 1
    assert upgraded["status"] == "original", upgraded
    assert upgraded["upgradedPrompt"] == "Plan a garden"
    assert upgraded["error"]["detail"]
    codes = {warning["code"] for warning in upgraded["warnings"]}
    assert codes & {"model_unavailable", "deadline_exceeded"}, codes
    assert "summary_skipped" in codes or "deadline_exceeded" in codes


async def test_upgrades_work_again_when_the_model_is_back(stack: RunningStack, model: ModelServer) -> None:
    model.behaviour = Behaviour()
    deadline = time.monotonic() + 15
    async with stack.client() as client:
        while True:
            upgraded = (await client.post("/api/upgrade", json={"userPrompt": "Plan a garden"})).json()
            if upgraded["status"] == "upgraded":
                return
            assert time.monotonic() < deadline, upgraded
