"""The rate limit over HTTP: its headers, its refusals, and the users and credentials it applies to."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime

import httpx
import pytest

from services.gateway.identity.api_keys import DEMO_TENANT_ID
from shared.contracts.contract import now_utc
from shared.contracts.quota import Plan
from tests.component.gateway_world import World, world_in
from tests.conftest import eventually

LIMIT = 5
PROMPT = {"userPrompt": "write about rain"}
ASYNC = {"Prefer": "respond-async"}


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world_in(tmp_path_factory.mktemp("rate")) as running:
        limited = {"RATE_LIMIT_PER_MINUTE": str(LIMIT), "TRUSTED_PROXIES": "127.0.0.1"}
        await running.gateway.stop()
        one, two = running.new_gateway(**limited), running.new_gateway(**limited)
        async with await one.start(), await two.start():
            running.gateway, running.second = one, two
            yield running


async def post(client: httpx.AsyncClient, user: str | None = None, **headers: str) -> httpx.Response:
    body = PROMPT | ({"userId": user} if user else {})
    return await client.post("/api/upgrade", json=body, headers=ASYNC | headers)


async def test_the_limit_is_one_for_all_replicas(world: World) -> None:
    async with world.client() as one, world.client(world.second) as two:
        answers = await asyncio.gather(*(post((one, two)[i % 2], "ann") for i in range(4 * LIMIT)))
        accepted = [answer for answer in answers if answer.status_code == 202]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert (len(accepted), len(refused)) == (LIMIT, 3 * LIMIT)
        assert {answer.headers["ratelimit-policy"] for answer in answers} == {f'"user";q={LIMIT};w=60'}
        left = sorted(answer.headers["ratelimit"].split(";")[1] for answer in accepted)
        assert left == [f"r={n}" for n in range(LIMIT)]
        for answer in refused:
            assert answer.json()["code"] == "rate_limited"
            assert 50 <= int(answer.headers["retry-after"]) <= 60
            assert answer.headers["ratelimit"] == f'"user";r=0;t={answer.headers["retry-after"]}'
        # Another user has its own limit, and so has the credential for requests without a user.
        assert (await post(one, "bob")).status_code == 202
        assert (await post(one)).status_code == 202


async def test_what_is_refused_and_what_is_repeated_costs_nothing(world: World) -> None:
    async with world.client() as client:
        invalid = await client.post("/api/upgrade", json={"userPrompt": "", "userId": "cid"})
        assert invalid.status_code == 422
        key = {"Idempotency-Key": "one place"}
        answers = [await post(client, "cid", **key) for _ in range(LIMIT + 2)]
        assert {answer.status_code for answer in answers} <= {200, 202}
        assert answers[-1].headers["idempotent-replayed"] == "true"
        assert answers[-1].headers["ratelimit"].startswith(f'"user";r={LIMIT - 1};')
        for _ in range(LIMIT - 1):
            assert (await post(client, "cid")).status_code == 202
        assert (await post(client, "cid")).status_code == 429
        # A repeated request is answered whatever the limit.
        assert (await post(client, "cid", **key)).headers["idempotent-replayed"] == "true"


async def test_the_rate_is_checked_before_the_quota(world: World) -> None:
    async with world.client() as client:
        world.worker.answering = False  # upgrades that have not ended are held
        try:
            for _ in range(LIMIT):
                assert (await post(client, "eve")).status_code == 202
            world.siblings.usage.set_plan(DEMO_TENANT_ID, Plan.FREE, upgrades=0)

            async def nothing_left() -> bool:  # the quota is at most a second old
                quota = (await client.get("/api/quota")).json()
                return bool(quota["meters"]["upgrades"]["remaining"] == 0)

            await eventually(nothing_left)
            assert (await post(client, "eve")).json()["code"] == "rate_limited"
            other = await post(client, "dan")
            assert other.json()["code"] == "quota_exceeded"
            # Released holds would not make enough room, so the client has to wait for the next month.
            assert other.json()["held"] > 0
            until_reset = datetime.fromisoformat(other.json()["resetsAt"]) - now_utc()
            assert abs(int(other.headers["retry-after"]) - until_reset.total_seconds()) < 60
            assert other.headers["ratelimit"].startswith(f'"user";r={LIMIT};')
        finally:
            world.worker.answering = True
            world.siblings.usage.set_plan(DEMO_TENANT_ID, Plan.PRO)


async def test_unknown_credentials_are_limited_by_address(world: World) -> None:
    async with httpx.AsyncClient(base_url=world.gateway.url) as stranger:

        async def ask(address: str, key: str = "pu_nobody") -> httpx.Response:
            headers = {"X-API-Key": key, "X-Forwarded-For": f"203.0.113.200, {address}"}
            return await stranger.get("/api/quota", headers=headers)

        answers = [await ask("198.51.100.7") for _ in range(LIMIT + 3)]
        assert [answer.status_code for answer in answers] == [401] * LIMIT + [429] * 3
        assert answers[-1].json()["code"] == "rate_limited"
        assert 0 < int(answers[-1].headers["retry-after"]) <= 60
        assert (await ask("198.51.100.8")).status_code == 401
        # A gateway without a rate limit for upgrades still limits failed authentications.
        async with (
            await world.new_gateway(RATE_LIMIT_PER_MINUTE="0").start() as any_number,
            httpx.AsyncClient(base_url=any_number.url) as other,
        ):
            tries = [await other.get("/api/quota", headers={"X-API-Key": "pu_nobody"}) for _ in range(62)]
        assert [answer.status_code for answer in tries] == [401] * 60 + [429] * 2
        # A valid credential is accepted from the same address.
        headers = dict(world.client().headers) | {"X-Forwarded-For": "198.51.100.7"}
        assert (await stranger.get("/api/quota", headers=headers)).status_code == 200
