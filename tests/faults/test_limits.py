"""150 clients compete for 100 upgrades at two gateways while parts are killed: the limit is never exceeded.

The model is slow, so that all 100 upgrades are in flight when a part is killed.
"""

import asyncio
import contextlib
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from deploy.local.ports import HOST, free_port
from deploy.local.processes import ServerCommand
from deploy.local.readiness import http_ready
from deploy.local.servers import ServerProcess
from services.gateway.identity.api_keys import DEMO_TENANT_ID
from tests.component.admission_world import adds_up
from tests.conftest import eventually
from tests.model_server import Behaviour, ModelServer
from tests.running_stack import ENDED, RunningStack

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900), pytest.mark.xdist_group("faults")]

PLACES, CLIENTS = 100, 150
MODEL_SECONDS = 3.0
ADMIN_KEY = "admin-key-of-the-fault-tests-0123456789"
ENVIRONMENT = {
    "OPENAI_API_KEY": "scripted",
    "RATE_LIMIT_PER_MINUTE": "1000000",
    "UPGRADE_DEADLINE_SECONDS": "30",
    "ADMIN_API_KEY": ADMIN_KEY,
}
POST_WITHIN_SECONDS = 60.0
# The longest life of a hold whose gateway died before recording it: the deadline, 10 s, and the next check.
HOLDS_END_WITHIN_SECONDS = 90.0


@dataclass
class Round:
    """The outcome of one round of requests."""

    accepted: dict[str, str] = field(default_factory=dict)
    refused: list[dict[str, Any]] = field(default_factory=list)


class Limited:
    """A stack with two gateways, and a demo tenant whose upgrade limit the test sets."""

    def __init__(self, stack: RunningStack, clients: tuple[httpx.AsyncClient, httpx.AsyncClient]) -> None:
        self.stack = stack
        self.clients = clients

    async def leave_places(self, places: int) -> dict[str, Any]:
        """Sets the limit to current use plus `places` and returns the meter."""
        used = (await self.settled())["used"]
        body = {"plan": "ENTERPRISE", "overrides": {"upgrades": used + places}}
        path = f"/api/admin/tenants/{DEMO_TENANT_ID}/plan"
        answer = await self.clients[0].put(path, json=body, headers={"X-Admin-Key": ADMIN_KEY})
        assert answer.status_code == 200, answer.text
        return await self.settled()

    async def upgrades_meter(self, client: httpx.AsyncClient) -> dict[str, Any] | None:
        """Reads the meter and checks that it adds up; None while the gateway does not answer."""
        with contextlib.suppress(httpx.TransportError):
            answer = await client.get("/api/quota")
            if answer.status_code == 200:
                meter: dict[str, Any] = answer.json()["meters"]["upgrades"]
                assert meter["limit"] is None or meter["used"] + meter["held"] <= meter["limit"], meter
                adds_up(meter)
                return meter
        return None

    async def settled(self) -> dict[str, Any]:
        """The meter, once nothing is held."""

        async def nothing_held() -> dict[str, Any] | None:
            meter = await self.upgrades_meter(self.clients[0])
            return meter if meter is not None and meter["held"] == 0 else None

        found = await eventually(nothing_held, HOLDS_END_WITHIN_SECONDS)
        assert found is not None
        return found

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Reads the meters of both gateways repeatedly meanwhile and checks them against the limit."""

        async def watch(client: httpx.AsyncClient) -> None:
            while True:
                await self.upgrades_meter(client)
                await asyncio.sleep(0.1)

        watching = [asyncio.create_task(watch(client)) for client in self.clients]
        try:
            yield
            assert not any(task.done() for task in watching), watching
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)

    async def post_all(self, name: str) -> Round:
        """Posts from every client until each is accepted or refused."""
        found = Round()
        await asyncio.gather(*(self._post(f"{name}-{number:03}", number, found) for number in range(CLIENTS)))
        return found

    async def post(self, key: str, number: int) -> httpx.Response | None:
        """One attempt; None when the connection broke."""
        body = {"userPrompt": f"Write a note for case {key}", "options": {"enableRAG": False}}
        headers = {"Prefer": "respond-async", "Idempotency-Key": key}
        try:
            return await self.clients[number % 2].post("/api/upgrade", json=body, headers=headers)
        except httpx.TransportError:
            return None

    async def _post(self, key: str, number: int, found: Round) -> None:
        deadline = time.monotonic() + POST_WITHIN_SECONDS
        while True:
            answer = await self.post(key, number)
            if answer is not None and answer.status_code in (200, 202):
                found.accepted[key] = answer.json()["id"]
                return
            if answer is not None and answer.status_code == 429:
                found.refused.append(answer.json())
                return
            assert answer is None or answer.status_code == 503, answer.text
            assert time.monotonic() < deadline, f"{key} was neither accepted nor refused"
            await asyncio.sleep(0.1)

    async def ends(self, round_: Round) -> Counter[str]:
        """Counts the accepted upgrades by final status."""
        deadline = time.monotonic() + HOLDS_END_WITHIN_SECONDS
        known = dict.fromkeys(round_.accepted.values(), "unread")
        while waiting := [upgrade_id for upgrade_id, status in known.items() if status not in ENDED]:
            assert time.monotonic() < deadline, Counter(known.values())
            statuses = await asyncio.gather(*(self._status(upgrade_id) for upgrade_id in waiting))
            known |= dict(zip(waiting, statuses, strict=True))
            await asyncio.sleep(0.3)
        return Counter(known.values())

    async def _status(self, upgrade_id: str) -> str:
        with contextlib.suppress(httpx.TransportError):
            answer = await self.clients[0].get(f"/api/upgrades/{upgrade_id}")
            if answer.status_code == 200:
                return str(answer.json()["status"])
        return "unread"


@pytest.fixture(
    scope="module", params=[False, pytest.param(True, marks=pytest.mark.cluster)], ids=["embedded", "apache-kafka"]
)
async def limited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Limited]:
    model = ModelServer()
    await model.start()
    model.behaviour = Behaviour(latency_seconds=MODEL_SECONDS)
    environment = {**ENVIRONMENT, "OPENAI_BASE_URL": model.url}
    folder = tmp_path_factory.mktemp("limits")
    async with RunningStack(folder, cluster=request.param, environment=environment) as stack:
        second = second_gateway(stack)
        limits = httpx.Limits(max_connections=200)
        async with await second.start(), stack.client(limits=limits) as one, stack.client(limits=limits) as two:
            two.base_url = httpx.URL(second.url)
            yield Limited(stack, (one, two))
    await model.stop()


def second_gateway(stack: RunningStack) -> ServerProcess:
    """A second gateway on the stack's store, broker and Redis."""
    port = free_port()
    tool = (sys.executable, "-m", "deploy.local", "env", "--", sys.executable, "-m", "services.gateway")
    environment = {**stack.environment, "GATEWAY_PORT": str(port)}
    url = f"http://{HOST}:{port}"
    return ServerProcess(ServerCommand("gateway-2", tool, port, url, lambda: http_ready(HOST, port), env=environment))


async def in_flight(limited: Limited, places: int) -> None:
    """Returns when at least `places` upgrades are held."""

    async def held() -> bool:
        meter = await limited.upgrades_meter(limited.clients[1])
        return meter is not None and meter["held"] >= places

    await eventually(held, 20)


def judge(name: str, round_: Round, before: dict[str, Any], after: dict[str, Any], ends: Counter[str]) -> None:
    print(f"\n{name:<14} accepted {len(round_.accepted)}, refused {len(round_.refused)}, ended {dict(ends)}")
    assert len(set(round_.accepted.values())) == len(round_.accepted) <= PLACES
    assert len(round_.accepted) + len(round_.refused) == CLIENTS
    for problem in round_.refused:
        assert problem["code"] == "quota_exceeded"
        assert problem["used"] + problem["held"] + 1 > problem["limit"], "refused below the limit"
    assert after["used"] - before["used"] == ends["upgraded"] + ends["cached"]


async def reconciled(limited: Limited) -> str:
    """Returns the output of `make reconcile`; fails on a difference."""
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "deploy.local",
            "env",
            "--",
            sys.executable,
            "-m",
            "services.usage.reconciling.command",
        ),
        env=limited.stack.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.mark.parametrize("victim", ["gateway", "usage", "broker", "redis"])
async def test_no_limit_is_exceeded_when_parts_are_killed(limited: Limited, victim: str) -> None:
    before = await limited.leave_places(PLACES)
    async with limited.watched():
        posting = asyncio.create_task(limited.post_all(victim))
        await in_flight(limited, PLACES // 4)
        await limited.stack.kill(victim)
        round_ = await posting
        ends = await limited.ends(round_)
        after = await limited.settled()
    judge(victim, round_, before, after, ends)
    print(await reconciled(limited))


async def test_no_limit_is_exceeded_when_redis_is_emptied(limited: Limited) -> None:
    before = await limited.leave_places(PLACES)
    async with limited.watched():
        round_ = await limited.post_all("emptied")
        assert len(round_.accepted) == PLACES
        async with Redis.from_url(limited.stack.endpoints()["redis"]) as redis:
            await redis.flushall()
        late = await limited.post_all("late")
        assert late.accepted == {}, "accepted above the limit after Redis was emptied"
        for number, (key, upgrade_id) in enumerate(round_.accepted.items()):
            again = await limited.post(key, number)
            assert again is not None
            assert (again.json()["id"], again.headers["idempotent-replayed"]) == (upgrade_id, "true")
        ends = await limited.ends(round_)
        after = await limited.settled()
    judge("redis emptied", round_, before, after, ends)
    print(await reconciled(limited))
