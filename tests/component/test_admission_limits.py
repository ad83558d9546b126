"""Nobody is over-admitted: two gateways and one usage service, against limits, outages and lost state."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from shared.contracts.quota import Meter, Plan
from shared.contracts.upgrade_results import UpgradeError, UpgradeStatus
from shared.contracts.upgrade_tasks import ComponentUsage
from tests.component.admission_world import (
    ASYNC,
    PROMPT,
    WITH_RAG,
    AdmissionWorld,
    admission_world_in,
    verdicts,
)
from tests.conftest import eventually


@pytest.fixture(scope="module")
async def lasting(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AdmissionWorld]:
    async with admission_world_in(tmp_path_factory.mktemp("admission")) as running:
        yield running


@pytest.fixture
async def world(lasting: AdmissionWorld) -> AdmissionWorld:
    """One world for all tests here; each begins with nothing held, and brings back what it takes away."""
    lasting.worker.answering = lasting.worker.reporting = True
    lasting.worker.changes.clear()
    await lasting.worker.answer_all()
    await lasting.worker.report()
    await lasting.settled()
    await lasting.limit()
    lasting.worker.received.clear()
    return lasting


async def test_three_hundred_at_once_against_a_hundred_left(world: AdmissionWorld) -> None:
    await world.limit(upgrades=100)
    before = await world.meters()
    async with world.watched() as seen:
        answers = await world.burst(300)
    assert verdicts(answers) == {"202": 100, "quota_exceeded": 200}
    problem = next(answer for answer in answers if answer.status_code == 429)
    body = problem.json()
    assert body["meter"] == "upgrades"
    assert body["limit"] == before["upgrades"]["limit"]
    assert body["used"] + body["held"] == body["limit"]
    assert body["resetsAt"].endswith("-01T00:00:00.000Z")
    assert int(problem.headers["retry-after"]) > 0
    assert len(seen) > 1
    after = await world.settled()
    assert after["upgrades"]["used"] == before["upgrades"]["used"] + 100
    assert after["upgrades"]["remaining"] == 0
    assert verdicts(await world.burst(5)) == {"quota_exceeded": 5}


async def test_tokens_are_never_held_above_their_limit(world: AdmissionWorld) -> None:
    [first] = await world.burst(1)
    assert first.status_code == 202
    record = next(r for r in await world.world.records() if r["_id"] == first.json()["id"])
    need = record["hold"]["tokens"]
    await world.settled()
    world.worker.answering = False
    await world.limit(tokens=need * 40 + need // 2)
    answers = await world.burst(120)
    assert verdicts(answers) == {"202": 40, "quota_exceeded": 80}
    assert {answer.json()["meter"] for answer in answers if answer.status_code == 429} == {"tokens"}
    assert (await world.meters())["tokens"]["held"] == need * 40
    await world.worker.answer_all()

    async def room_again() -> bool:
        held: int = (await world.meters())["tokens"]["held"]
        return held == 0

    await eventually(room_again)
    # What was held and not used is there for others.
    assert verdicts(await world.burst(40)) == {"202": 40}


async def test_tokens_for_a_hundred_upgrades_are_used_for_nearly_a_hundred(world: AdmissionWorld) -> None:
    """A hold is larger than what is used; who does not fit beside open holds waits for them."""
    used_by_one = 1_400
    usage = ComponentUsage(component="upgrader", operation="rewrite", tokens_in=1_150, tokens_out=250)
    world.worker.changes = {"usage": [usage]}
    await world.limit(tokens=100 * used_by_one)
    before = await world.meters()
    answers = await world.burst(300)
    accepted = verdicts(answers).get("202", 0)
    assert 95 <= accepted <= 100
    assert set(verdicts(answers)) == {"202", "quota_exceeded"}
    after = await world.settled()
    assert after["tokens"]["used"] == before["tokens"]["used"] + accepted * used_by_one


async def test_embeddings_are_never_held_above_their_limit(world: AdmissionWorld) -> None:
    world.worker.answering = False
    [first] = await world.burst(1, WITH_RAG)
    need = next(r for r in await world.world.records() if r["_id"] == first.json()["id"])["hold"]["embeddings"]
    await world.limit(embeddings=need * 25)
    answers = await world.burst(60, WITH_RAG)
    assert verdicts(answers) == {"202": 25, "quota_exceeded": 35}
    # An upgrade that needs none of a meter is not kept out by it.
    assert verdicts(await world.burst(3)) == {"202": 3}


async def test_work_that_was_no_upgrade_gives_it_back_and_pays_its_tokens(world: AdmissionWorld) -> None:
    await world.limit(upgrades=10)
    before = await world.meters()
    failure = UpgradeError(code="model_unavailable", detail="out")
    world.worker.changes = {"status": UpgradeStatus.ORIGINAL, "error": failure}
    assert verdicts(await world.burst(10)) == {"202": 10}
    after = await world.settled()
    assert after["upgrades"]["used"] == before["upgrades"]["used"]
    assert after["upgrades"]["remaining"] == 10
    assert after["tokens"]["used"] == before["tokens"]["used"] + 30


async def test_a_plan_counts_at_once_up_and_down(world: AdmissionWorld) -> None:
    await world.limit(upgrades=3)
    assert verdicts(await world.burst(4)) == {"202": 3, "quota_exceeded": 1}
    await world.limit(upgrades=2)
    assert verdicts(await world.burst(4)) == {"202": 2, "quota_exceeded": 2}
    await world.settled()
    await world.limit(Plan.FREE, upgrades=0)
    assert verdicts(await world.burst(1)) == {"quota_exceeded": 1}
    await world.limit(Plan.ENTERPRISE)
    quota = (await world.one.get("/api/quota")).json()
    assert quota["plan"] == "ENTERPRISE"
    assert {meter["limit"] for meter in quota["meters"].values()} == {None}


@pytest.mark.parametrize("how", ["emptied", "killed"])
async def test_redis_is_lost_with_a_hundred_in_flight_at_the_limit(world: AdmissionWorld, how: str) -> None:
    world.worker.answering = False
    await world.limit(upgrades=100)
    before = await world.meters()
    key = {"Idempotency-Key": f"first of {how}"}
    [first] = await world.burst(1, **key)
    assert verdicts(await world.burst(120)) == {"202": 99, "quota_exceeded": 21}
    if how == "emptied":
        async with Redis.from_url(world.world.valkey.url) as redis:
            await redis.flushall()
    else:
        await world.world.valkey.kill()
        refused = await world.burst(3)
        assert verdicts(refused) == {"unavailable": 3}
        assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
        await world.world.valkey.start()
    answers = await world.burst(60)
    assert set(verdicts(answers)) <= {"quota_exceeded", "unavailable"}
    await world.warm()
    meters = await world.meters()
    assert meters["upgrades"]["held"] == 100
    again = (await world.burst(1, **key))[0]
    assert again.status_code == 202
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["idempotent-replayed"] == "true"
    await world.worker.answer_all()
    after = await world.settled()
    assert after["upgrades"]["used"] == before["upgrades"]["used"] + 100


async def test_redis_is_emptied_again_and_again_under_load(world: AdmissionWorld) -> None:
    await world.limit(upgrades=150)
    before = await world.meters()
    statuses: list[httpx.Response] = []

    async def client(number: int) -> None:
        for _ in range(12):
            statuses.append(await world.clients[number % 2].post("/api/upgrade", json=PROMPT, headers=ASYNC))
            await asyncio.sleep(0.01 * (number % 7))

    async def trouble() -> None:
        async with Redis.from_url(world.world.valkey.url) as redis:
            for pause in (0.3, 4.0):
                await asyncio.sleep(pause)
                await redis.flushall()
        await asyncio.sleep(1.0)
        await world.world.valkey.kill()
        await world.world.valkey.start()

    async with world.watched():
        await asyncio.gather(trouble(), *(client(number) for number in range(25)))
    await world.warm()
    while verdicts(await world.burst(20)).get("202"):
        pass
    after = await world.settled()
    # No more than the limit, and no less: whoever was refused was refused for a reason.
    assert after["upgrades"]["used"] == before["upgrades"]["limit"]
    assert set(verdicts(statuses)) <= {"202", "quota_exceeded", "unavailable"}


async def test_usage_is_out_for_longer_than_a_hold_lives(world: AdmissionWorld) -> None:
    await world.limit(upgrades=40)
    before = await world.meters()
    assert verdicts(await world.burst(15)) == {"202": 15}
    await world.usage.kill()
    try:
        # Ended holds stay as long as usage has not counted them, however long that is.
        for _ in range(3):
            answers = await world.burst(10)
            assert set(verdicts(answers)) <= {"202", "quota_exceeded"}
            await asyncio.sleep(0.5)
        meters = await world.meters()
        assert meters["upgrades"]["used"] + meters["upgrades"]["held"] == before["upgrades"]["limit"]
        # Holds that are due are looked at, and none is dropped.
        async with Redis.from_url(world.world.valkey.url) as redis:
            [due] = [name async for name in redis.scan_iter(match="pu:{*}:due-holds:*")]
            holds: list[Any] = await redis.zrange(due, 0, -1)
            await redis.zadd(due, dict.fromkeys(holds, 1))
        assert verdicts(await world.burst(10)) == {"quota_exceeded": 10}
        assert verdicts(await world.burst(10)) == {"quota_exceeded": 10}
    finally:
        await world.usage.start()
    after = await world.settled(60)
    assert after["upgrades"]["used"] == before["upgrades"]["limit"]


async def test_a_gateway_is_killed_between_admission_and_record(world: AdmissionWorld) -> None:
    """The hold that it leaves is found when it is due; nothing else knows of it."""
    await world.limit(upgrades=1)
    async with Redis.from_url(world.world.valkey.url) as redis:
        [counters] = [name async for name in redis.scan_iter(match="pu:{*}:admission:*")]
        prefix, _, period = counters.decode().partition(":admission:")
        await redis.hset(f"{prefix}:holds:{period}", "left-behind", "1,10,0,0,0")
        await redis.hincrby(counters.decode(), "hu", 1)
        await redis.hincrby(counters.decode(), "ht", 10)
        await redis.zadd(f"{prefix}:due-holds:{period}", {"left-behind": 1})
    assert verdicts(await world.burst(1)) == {"202": 1}
    assert (await world.settled())["upgrades"]["remaining"] == 0


async def test_the_same_key_fifty_times_at_the_last_place(world: AdmissionWorld) -> None:
    await world.limit(upgrades=1)
    answers = await world.burst(50, **{"Idempotency-Key": "fifty at once"})
    assert set(verdicts(answers)) <= {"200", "202"}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len([a for a in answers if "idempotent-replayed" not in a.headers]) == 1
    after = await world.settled()
    assert after["upgrades"]["remaining"] == 0
    # A refused request claims no key.
    key = {"Idempotency-Key": "refused"}
    assert verdicts(await world.burst(2, **key)) == {"quota_exceeded": 2}
    await world.limit(upgrades=1)
    [accepted] = await world.burst(1, **key)
    assert accepted.status_code == 202
    assert "idempotent-replayed" not in accepted.headers


async def test_meters_of_the_quota_have_the_names_of_the_plans(world: AdmissionWorld) -> None:
    assert set(await world.meters()) == {meter.value for meter in Meter}
