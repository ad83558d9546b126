"""Accepted upgrades end after crashes of the gateway, the broker, Redis or the upgrader."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from shared.contracts.upgrade_tasks import GiveUpReason, Stage
from tests.component.gateway_world import World, key_hash, world_in
from tests.conftest import eventually

PROMPT = {"userPrompt": "write about rain"}
ASYNC = {"Prefer": "respond-async"}
LONG_AGO = "2026-01-01T00:00:00.000Z"


@pytest.fixture(scope="module")
async def lasting_world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world_in(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture
def world(lasting_world: World) -> World:
    """One world for all tests here; a test restarts what it kills."""
    lasting_world.worker.answering = lasting_world.worker.replying = True
    lasting_world.worker.received.clear()
    return lasting_world


async def accepted(world: World, count: int = 1) -> list[str]:
    async with world.client() as client:
        answers = await asyncio.gather(*(client.post("/api/upgrade", json=PROMPT, headers=ASYNC) for _ in range(count)))
    assert {answer.status_code for answer in answers} == {202}
    return [answer.json()["id"] for answer in answers]


async def all_ended(world: World, ids: list[str], timeout: float = 20.0) -> None:
    async with world.client() as client:

        async def ended() -> bool:
            states = [(await client.get(f"/api/upgrades/{upgrade_id}")).json()["status"] for upgrade_id in ids]
            return set(states) == {"upgraded"}

        await eventually(ended, timeout)


async def records(world: World, ids: list[str]) -> list[dict[str, Any]]:
    return [found for found in await world.records() if found["_id"] in ids]


async def record(world: World, upgrade_id: str) -> dict[str, Any]:
    return (await records(world, [upgrade_id]))[0]


async def test_a_killed_gateway_publishes_what_it_had_only_recorded(world: World) -> None:
    await world.worker.stop()
    await world.tansu.kill()
    ids = await accepted(world, 20)
    found = await records(world, ids)
    assert len(found) == len(ids)
    assert not any("publishedOn" in r for r in found)
    await world.gateway.kill()
    await world.new_broker_after_kill()
    await world.gateway.start()
    await all_ended(world, ids)


async def test_publishing_that_fails_is_made_up_for(world: World) -> None:
    await world.worker.stop()
    await world.tansu.kill()
    async with world.client() as client:
        started = time.monotonic()
        answer = await client.post("/api/upgrade", json=PROMPT, headers={"Prefer": "wait=1"})
        assert answer.status_code == 202
        assert time.monotonic() - started < 3
    await world.new_broker_after_kill()
    await all_ended(world, [answer.json()["id"]], 40)


async def test_a_new_log_gets_all_open_upgrades_again(world: World) -> None:
    world.worker.answering = False
    ids = await accepted(world, 10)

    async def published() -> bool:
        return all("publishedOn" in r for r in await records(world, ids))

    await eventually(published)
    first_log = {r["publishedOn"] for r in await records(world, ids)}
    world.worker.received.clear()
    world.worker.answering = True
    await world.new_broker()
    await all_ended(world, ids, 30)
    for upgrade_id in ids:
        topic, task = world.worker.tasks(upgrade_id)[0]
        assert topic == "upgrades.retrieve.v1"
        assert task.itinerary == [Stage.RAG, Stage.UPGRADER]
    assert len(first_log) == 1


async def test_an_upgrade_that_nobody_ends_goes_to_the_upgrader_as_expired(world: World) -> None:
    world.worker.answering = False
    [upgrade_id] = await accepted(world)
    await world.change_record(upgrade_id, deadline=LONG_AGO)

    async def handed_over() -> bool:
        return len(world.worker.tasks(upgrade_id)) >= 3

    # The first message, then the expired ones, with growing pauses.
    await eventually(handed_over, 20)
    for topic, task in world.worker.tasks(upgrade_id)[1:]:
        assert topic == "upgrades.rewrite.v1"
        assert task.itinerary == [Stage.UPGRADER]
        assert task.given_up is not None
        assert task.given_up.reason == GiveUpReason.EXPIRED
    envelope = world.worker.last_envelope(upgrade_id)
    assert envelope
    await world.worker.answer(envelope)
    await all_ended(world, [upgrade_id])

    async def closed() -> bool:
        found = await record(world, upgrade_id)
        return "openSince" not in found and "uncountedSince" not in found

    await eventually(closed)


async def test_an_end_that_nobody_told_of_is_found(world: World) -> None:
    world.worker.replying = False
    [upgrade_id] = await accepted(world)

    async def known() -> bool:
        return bool((await record(world, upgrade_id))["outcome"] == "upgraded")

    await eventually(known, 15)
    assert len(world.worker.tasks(upgrade_id)) == 1


async def test_redis_out_and_back(world: World) -> None:
    port = world.valkey.port
    world.worker.answering = False
    [running] = await accepted(world)
    before = len(await world.records())
    await world.valkey.kill()
    async with world.client() as client:
        started = time.monotonic()
        refused = await client.post("/api/upgrade", json=PROMPT)
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
        assert int(refused.headers["retry-after"]) > 0
        assert time.monotonic() - started < 5
        assert (await client.get("/api/quota")).status_code == 503
        assert len(await world.records()) == before
        # Accepted upgrades continue: the end is looked up, and the events are made from the result.
        envelope = world.worker.last_envelope(running)
        assert envelope
        await world.worker.answer(envelope)
        events = (await client.get(f"/api/upgrades/{running}/events")).text
        assert "event: accepted" in events
        assert "event: completed" in events
        assert (await client.get("/health/ready")).status_code == 503
        world.worker.answering = True
        await world.valkey.start()
        assert world.valkey.port == port

        async def quick() -> bool:
            started = time.monotonic()
            answer = await client.post("/api/upgrade", json=PROMPT)
            return answer.status_code == 200 and time.monotonic() - started < 0.5

        await eventually(quick, 20)
        assert (await client.get("/health/ready")).status_code == 200


async def test_the_upgrader_out_and_back(world: World) -> None:
    async with world.client() as client:
        done = (await client.post("/api/upgrade", json=PROMPT)).json()["id"]
        world.worker.answering = False
        [running] = await accepted(world)

        async def noted() -> bool:
            return bool((await record(world, done))["outcome"] == "upgraded")

        await eventually(noted)
        world.siblings.out = True
        unreadable = await client.get(f"/api/upgrades/{done}")
        assert (unreadable.status_code, unreadable.json()["code"]) == (503, "unavailable")
        assert unreadable.headers["retry-after"]
        assert (await client.get(f"/api/upgrades/{running}")).json()["status"] == "accepted"
        world.siblings.out = False
        assert (await client.get(f"/api/upgrades/{done}")).json()["status"] == "upgraded"


async def test_a_gateway_killed_while_clients_wait(world: World) -> None:
    world.worker.answering = False
    keys = [f"killed-{number}" for number in range(10)]
    hashes = {key_hash(key) for key in keys}
    async with world.client() as client:
        waiting = [
            asyncio.create_task(client.post("/api/upgrade", json=PROMPT, headers={"Idempotency-Key": key}))
            for key in keys
        ]

        async def recorded() -> bool:
            return len([r for r in await world.records() if r.get("keyHash") in hashes]) == 10

        await eventually(recorded)
        await world.gateway.kill()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(outcome, httpx.HTTPError) for outcome in outcomes)
    world.worker.answering = True
    await world.gateway.start()
    for _, envelope in list(world.worker.received):
        await world.worker.answer(envelope)
    async with world.client() as client:
        again = await asyncio.gather(
            *(client.post("/api/upgrade", json=PROMPT, headers={"Idempotency-Key": key}) for key in keys)
        )
    assert {answer.status_code for answer in again} == {200}
    assert {answer.headers["idempotent-replayed"] for answer in again} == {"true"}
    assert len([r for r in await world.records() if r.get("keyHash") in hashes]) == 10


async def test_two_replicas_share_the_work(world: World) -> None:
    world.worker.answering = False
    async with await world.new_gateway().start() as second, world.client() as one, world.client(second) as two:
        made = (await one.post("/api/upgrade", json=PROMPT, headers=ASYNC | {"Idempotency-Key": "both"})).json()["id"]
        waiting = asyncio.create_task(two.post("/api/upgrade", json=PROMPT, headers={"Idempotency-Key": "both"}))

        async def envelope() -> Any:
            return world.worker.last_envelope(made)

        await world.worker.answer(await eventually(envelope))
        answer = await waiting
        assert (answer.status_code, answer.json()["id"]) == (200, made)
        world.worker.answering = False
        [expired] = await accepted(world)
        await world.change_record(expired, deadline=LONG_AGO)

        async def handed_over() -> bool:
            return len(world.worker.tasks(expired)) >= 2

        await eventually(handed_over, 10)
        assert (await record(world, expired))["expiries"] == 1
        assert len(world.worker.tasks(expired)) == 2


async def test_sigterm_lets_nobody_hang(world: World) -> None:
    world.worker.answering = False
    log = world.data_dir / f"gateway-{world.gateway.port}.log"
    before = log.stat().st_size
    async with world.client() as client:
        first = asyncio.create_task(client.post("/api/upgrade", json=PROMPT))
        second = asyncio.create_task(client.post("/api/upgrade", json=PROMPT))

        async def both() -> bool:
            return len(world.worker.received) == 2

        await eventually(both)
        stream = asyncio.create_task(
            client.get(f"/api/upgrades/{world.worker.received[0][1].data.upgrade_id}/events")  # type: ignore[attr-defined]
        )

        os.kill(world.gateway.pid, signal.SIGTERM)
        await world.worker.answer(world.worker.received[0][1])
        answers = await asyncio.wait_for(asyncio.gather(first, second), 10)
        await asyncio.wait_for(stream, 10)
    assert sorted(answer.status_code for answer in answers) == [200, 202]

    async def gone() -> bool:
        return not world.gateway.running

    await eventually(gone, 10)
    assert b'"level":"error"' not in log.read_bytes()[before:]
    await world.gateway.start()
