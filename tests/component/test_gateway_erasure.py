"""Erasure: what is gone, when, and what stays. The gateway is real; the other services stand in the test."""

import asyncio
from typing import Any

import httpx
from redis.asyncio import Redis

from services.gateway.identity.api_keys import DEMO_TENANT_ID
from shared.contracts import redis_keys
from tests.component.gateway_world import World
from tests.component.gateway_world import module_client as module_client
from tests.component.gateway_world import module_world as module_world
from tests.component.test_gateway_requests import problem
from tests.conftest import eventually


async def record_of(world: World, upgrade_id: str) -> dict[str, Any]:
    return next(record for record in await world.records() if record["_id"] == upgrade_id)


async def test_an_erased_upgrade_is_gone_everywhere(world: World, client: httpx.AsyncClient) -> None:
    prompt = {
        "userPrompt": "ask zoe@example.org about the purple giraffe",
        "conversationHistory": [{"role": "user", "content": "the crimson walrus"}],
    }
    upgrade_id = (await client.post("/api/upgrade", json=prompt)).json()["id"]
    redis = Redis.from_url(world.valkey.url)
    stream = redis_keys.upgrade_events(DEMO_TENANT_ID, upgrade_id)
    await eventually(lambda: redis.exists(stream))

    assert (await client.delete(f"/api/upgrades/{upgrade_id}")).status_code == 204
    assert world.siblings.erased[-3:] == [(DEMO_TENANT_ID, upgrade_id)] * 3
    assert not await redis.exists(stream)
    await redis.aclose()
    for path in ("", "/events"):
        problem(await client.get(f"/api/upgrades/{upgrade_id}{path}"), 404, "not_found")
    problem(await client.get("/api/upgrades", params={"cursor": "x"}), 422, "invalid_request")
    listed = (await client.get("/api/upgrades")).json()["items"]
    assert upgrade_id not in [item["id"] for item in listed]
    record = await record_of(world, upgrade_id)
    assert "sealedPii" not in record
    assert "giraffe" not in str(record)
    assert "walrus" not in str(record)
    # What it was accepted and counted by stays.
    assert record["tenantId"] == DEMO_TENANT_ID
    assert record["period"]
    entry = (await client.get("/api/audit")).json()["items"][0]
    assert (entry["action"], entry["target"], entry["outcome"]) == ("upgrade.erased", upgrade_id, "done")


async def test_what_is_unknown_cannot_be_erased(client: httpx.AsyncClient) -> None:
    for unknown in ("0198c5a0-0000-7000-8000-000000000000", "rubbish"):
        problem(await client.delete(f"/api/upgrades/{unknown}"), 404, "not_found")


async def test_an_upgrade_that_is_still_running(world: World, client: httpx.AsyncClient) -> None:
    world.worker.answering = False
    try:
        answer = await client.post("/api/upgrade", json={"userPrompt": "slow"}, headers={"Prefer": "respond-async"})
        upgrade_id = answer.json()["id"]
        assert (await client.delete(f"/api/upgrades/{upgrade_id}")).status_code == 202
        problem(await client.get(f"/api/upgrades/{upgrade_id}"), 404, "not_found")
    finally:
        world.worker.answering = True
    envelope = await eventually(lambda: _envelope(world, upgrade_id))
    before = world.siblings.erased.count((DEMO_TENANT_ID, upgrade_id))
    await world.worker.answer(envelope)
    # Its end brings the content back to the upgrader; the sweep erases it there once more.
    await eventually(lambda: _more(world, upgrade_id, before))
    assert (await client.delete(f"/api/upgrades/{upgrade_id}")).status_code == 204


async def _envelope(world: World, upgrade_id: str) -> Any:
    return world.worker.last_envelope(upgrade_id)


async def _more(world: World, upgrade_id: str, before: int) -> bool:
    return world.siblings.erased.count((DEMO_TENANT_ID, upgrade_id)) >= before + 3


async def test_a_service_that_is_out_is_asked_again(world: World, client: httpx.AsyncClient) -> None:
    upgrade_id = (await client.post("/api/upgrade", json={"userPrompt": "out"})).json()["id"]
    world.siblings.out = True
    try:
        assert (await client.delete(f"/api/upgrades/{upgrade_id}")).status_code == 202
        assert (DEMO_TENANT_ID, upgrade_id) not in world.siblings.erased
    finally:
        world.siblings.out = False
    await eventually(lambda: _more(world, upgrade_id, 0))


async def test_all_of_a_user(world: World, client: httpx.AsyncClient) -> None:
    mine = [
        (await client.post("/api/upgrade", json={"userPrompt": f"secret {n}", "userId": "a/b c"})).json()["id"]
        for n in range(3)
    ]
    other = (await client.post("/api/upgrade", json={"userPrompt": "not theirs", "userId": "bob"})).json()["id"]
    assert (await client.delete("/api/users/a%2Fb%20c")).status_code == 204
    for upgrade_id in mine:
        problem(await client.get(f"/api/upgrades/{upgrade_id}"), 404, "not_found")
        assert "secret" not in str(await record_of(world, upgrade_id))
    assert (await client.get(f"/api/upgrades/{other}")).status_code == 200
    assert (await client.get("/api/upgrades", params={"userId": "a/b c"})).json()["items"] == []
    assert (await client.delete("/api/users/a%2Fb%20c")).status_code == 204
    assert (await client.delete("/api/users/nobody-ever")).status_code == 204
    problem(await client.delete("/api/users/" + "x" * 129), 422, "invalid_request")
    entries = (await client.get("/api/audit")).json()["items"]
    assert entries[0]["action"] == "user.erased"
    assert entries[0]["target"].startswith("u_")


async def test_a_repeated_request_makes_nothing_new(client: httpx.AsyncClient) -> None:
    headers, body = {"Idempotency-Key": "erased"}, {"userPrompt": "once"}
    first = await client.post("/api/upgrade", json=body, headers=headers)
    assert (await client.delete(f"/api/upgrades/{first.json()['id']}")).status_code == 204
    again = await asyncio.gather(*(client.post("/api/upgrade", json=body, headers=headers) for _ in range(3)))
    for answer in again:
        problem(answer, 409, "conflict")
    listed = (await client.get("/api/upgrades")).json()["items"]
    assert "once" not in [item["userPrompt"] for item in listed]
    problem(
        await client.post("/api/upgrade", json={"userPrompt": "twice"}, headers=headers), 422, "idempotency_key_reused"
    )


async def test_who_follows_an_upgrade_hears_no_more_of_it_once_it_is_erased(
    world: World, client: httpx.AsyncClient
) -> None:
    world.worker.answering = False
    try:
        answer = await client.post("/api/upgrade", json={"userPrompt": "heard"}, headers={"Prefer": "respond-async"})
        upgrade_id = answer.json()["id"]
        async with client.stream("GET", f"/api/upgrades/{upgrade_id}/events") as stream:
            lines = stream.aiter_lines()
            assert [await anext(lines), await anext(lines)] == ["id: 1", "event: accepted"]
            assert (await client.delete(f"/api/upgrades/{upgrade_id}")).status_code == 202
            envelope = await eventually(lambda: _envelope(world, upgrade_id))
            await world.worker.answer(envelope)
            assert "event: completed" not in [line async for line in lines]
    finally:
        world.worker.answering = True


async def test_who_is_shut_out_hears_no_more(world: World, client: httpx.AsyncClient) -> None:
    key = (await client.post("/api/keys", json={"name": "n", "role": "VIEWER"})).json()
    world.worker.answering = False
    try:
        answer = await client.post("/api/upgrade", json={"userPrompt": "heard"}, headers={"Prefer": "respond-async"})
        path = f"/api/upgrades/{answer.json()['id']}/events"
        async with (
            httpx.AsyncClient(base_url=world.gateway.url, headers={"X-API-Key": key["key"]}) as other,
            other.stream("GET", path, timeout=10) as stream,
        ):
            assert (await client.delete(f"/api/keys/{key['id']}")).status_code == 204
            lines = [line async for line in stream.aiter_lines()]
        assert "event: accepted" in lines
        assert "event: completed" not in lines
    finally:
        world.worker.answering = True
