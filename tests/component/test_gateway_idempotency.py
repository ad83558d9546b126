"""The same `Idempotency-Key`: one upgrade, however often and however it comes."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from datetime import timedelta

import httpx
import pytest
from redis.asyncio import Redis

from shared.contracts.contract import format_utc, now_utc
from tests.component.gateway_world import World, key_hash, world_in
from tests.component.gateway_world import module_client as module_client
from tests.conftest import eventually

PROMPT = {"userPrompt": "write about rain"}
ASYNC = {"Prefer": "respond-async"}


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world_in(tmp_path_factory.mktemp("gateway")) as running:
        second = running.new_gateway()
        async with await second.start():
            running.second = second
            yield running


async def test_fifty_at_once_are_one_upgrade(world: World, client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "fifty"}
    async with world.client(world.second) as other_replica:
        answers = await asyncio.gather(
            *((client, other_replica)[i % 2].post("/api/upgrade", json=PROMPT, headers=headers) for i in range(50))
        )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len([a for a in answers if "idempotent-replayed" not in a.headers]) == 1
    records = [r for r in await world.records() if r.get("keyHash") == key_hash("fifty")]
    assert len(records) == 1
    assert "fifty" not in str(records)
    assert len(world.worker.tasks(records[0]["_id"])) == 1


async def test_a_repeat_while_the_first_still_runs(world: World, client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "still running"}
    world.worker.answering = False
    try:
        first = await client.post("/api/upgrade", json=PROMPT, headers=headers | ASYNC)
        second = await client.post("/api/upgrade", json=PROMPT, headers=headers | ASYNC)
        assert (first.status_code, second.status_code) == (202, 202)
        assert first.json() == second.json()
        assert first.json()["status"] == "accepted"
        assert second.headers["idempotent-replayed"] == "true"
        waiting = asyncio.create_task(client.post("/api/upgrade", json=PROMPT, headers=headers))
        envelope = None
        while envelope is None:
            await asyncio.sleep(0.01)
            envelope = world.worker.last_envelope(first.json()["id"])
        await world.worker.answer(envelope)
        third = await waiting
    finally:
        world.worker.answering = True
    assert third.status_code == 200
    assert third.json()["id"] == first.json()["id"]
    assert third.headers["idempotent-replayed"] == "true"


async def test_fifty_that_do_not_wait_get_one_answer(world: World, client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "fifty asynchronously"} | ASYNC
    first = await client.post("/api/upgrade", json=PROMPT, headers=headers)

    async def has_ended() -> bool:
        return bool((await client.get(first.headers["location"])).json()["status"] == "upgraded")

    await eventually(has_ended)
    answers = await asyncio.gather(*(client.post("/api/upgrade", json=PROMPT, headers=headers) for _ in range(49)))
    assert {answer.status_code for answer in [first, *answers]} == {202}
    assert {answer.content for answer in answers} == {first.content}
    assert {answer.headers["preference-applied"] for answer in answers} == {"respond-async"}


async def test_another_body_is_refused(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "other body"}
    first = await client.post("/api/upgrade", json=PROMPT, headers=headers)
    refused = await client.post("/api/upgrade", json={"userPrompt": "something else"}, headers=headers)
    assert refused.status_code == 422
    assert refused.json()["code"] == "idempotency_key_reused"
    again = await client.post("/api/upgrade", content=b' {"userPrompt" :"write about rain"}',
                              headers=headers | {"Content-Type": "application/json"})  # fmt: skip
    assert again.json() == first.json()


async def test_a_refused_request_claims_no_key(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "refused first"}
    assert (await client.post("/api/upgrade", json={"userPrompt": ""}, headers=headers)).status_code == 422
    accepted = await client.post("/api/upgrade", json=PROMPT, headers=headers)
    assert accepted.status_code == 200
    assert "idempotent-replayed" not in accepted.headers


async def test_after_a_day_the_key_is_free(world: World, client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "yesterday's"}
    first = (await client.post("/api/upgrade", json=PROMPT, headers=headers)).json()["id"]
    await world.change_record(first, createdAt=format_utc(now_utc() - timedelta(hours=24, minutes=1)))
    second = await client.post("/api/upgrade", json={"userPrompt": "new"}, headers=headers)
    assert second.status_code == 200
    assert second.json()["id"] != first
    assert "idempotent-replayed" not in second.headers
    assert (await client.get(f"/api/upgrades/{first}")).status_code == 200


async def test_the_key_outlives_a_kill_of_the_gateway(world: World) -> None:
    headers = {"Idempotency-Key": "before the kill"}
    async with world.client() as before:
        first = (await before.post("/api/upgrade", json=PROMPT, headers=headers)).json()
    await world.gateway.kill()
    await world.gateway.start()
    async with world.client() as after:
        again = await after.post("/api/upgrade", json=PROMPT, headers=headers)
    assert again.json() == first
    assert again.headers["idempotent-replayed"] == "true"


async def test_repeats_at_once_after_redis_was_emptied_get_the_first_upgrade(
    world: World, client: httpx.AsyncClient
) -> None:
    headers = {"Idempotency-Key": "before the flush"}
    first = await client.post("/api/upgrade", json=PROMPT, headers=headers)
    async with Redis.from_url(world.valkey.url) as redis, world.client(world.second) as other_replica:
        await redis.flushall()
        for _ in range(2):  # the second time the key is claimed by the first upgrade again
            answers = await asyncio.gather(
                *((client, other_replica)[i % 2].post("/api/upgrade", json=PROMPT, headers=headers) for i in range(20))
            )
            assert {answer.status_code for answer in answers} == {200}
            assert {answer.content for answer in answers} == {first.content}
    assert len([r for r in await world.records() if r.get("keyHash") == key_hash("before the flush")]) == 1


async def test_repeats_while_the_store_is_slow_get_one_upgrade_that_stays(
    world: World, client: httpx.AsyncClient
) -> None:
    """The first is told that nothing was accepted; its record comes later, and a repeat may be quick to see it."""
    for round_ in range(3):
        headers = {"Idempotency-Key": f"slow store {round_}"} | ASYNC
        lock = sqlite3.connect(world.data_dir / "gateway.sqlite3", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        try:
            first = asyncio.create_task(client.post("/api/upgrade", json=PROMPT, headers=headers))
            repeats = []
            for _ in range(45):
                repeats.append(asyncio.create_task(client.post("/api/upgrade", json=PROMPT, headers=headers)))
                await asyncio.sleep(0.08)
        finally:
            lock.execute("ROLLBACK")
            lock.close()
        answers = [await first, *await asyncio.gather(*repeats)]
        accepted = {answer.json()["id"] for answer in answers if answer.status_code < 300}
        assert {answer.status_code for answer in answers} <= {202, 503}
        assert len(accepted) == 1
        assert (await client.get(f"/api/upgrades/{accepted.pop()}")).status_code == 200


async def test_documents_are_created_once_too(world: World, client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "document"}
    body = {"title": "Leave", "text": "28 days"}
    before = len(world.siblings.documents)
    answers = await asyncio.gather(*(client.post("/api/documents", json=body, headers=headers) for _ in range(8)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.content for answer in answers}) == 1
    assert len([a for a in answers if "idempotent-replayed" not in a.headers]) == 1
    assert len(world.siblings.documents) == before + 1
    refused = await client.post("/api/documents", json=body | {"text": "30 days"}, headers=headers)
    assert refused.json()["code"] == "idempotency_key_reused"


async def test_a_document_whose_answer_was_lost_is_the_same_document(world: World, client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "lost answer"}
    body = {"title": "Leave", "text": "28 days"}
    before = len(world.siblings.documents)
    world.siblings.answers_lost = True
    try:
        assert (await client.post("/api/documents", json=body, headers=headers)).status_code == 503
    finally:
        world.siblings.answers_lost = False
    [made] = list(world.siblings.documents)[before:]
    again = await client.post("/api/documents", json=body, headers=headers)
    assert (again.status_code, again.json()["id"]) == (202, made)
    assert len(world.siblings.documents) == before + 1
    # Another body could make a second thing under the key.
    other = await client.post("/api/documents", json=body | {"text": "30 days"}, headers=headers)
    assert other.json()["code"] == "idempotency_key_reused"


async def test_a_document_that_was_deleted_keeps_its_key(world: World, client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "deleted document"}
    body = {"title": "Leave", "text": "28 days"}
    before = len(world.siblings.documents)
    world.siblings.answers_lost = True
    try:
        assert (await client.post("/api/documents", json=body, headers=headers)).status_code == 503
    finally:
        world.siblings.answers_lost = False
    [made] = list(world.siblings.documents)[before:]
    world.siblings.refusal = (409, "conflict")
    try:
        for _ in range(2):
            again = await client.post("/api/documents", json=body, headers=headers)
            assert (again.status_code, again.json()["code"]) == (409, "conflict")
    finally:
        world.siblings.refusal = None
    # Whatever rag makes of it, it is asked for the same document.
    assert (await client.post("/api/documents", json=body, headers=headers)).json()["id"] == made


async def test_what_was_answered_of_a_document_is_kept_sealed(world: World, client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "private document"}
    body = {"title": "The merger with Umbrella", "text": "is off"}
    first = await client.post("/api/documents", json=body, headers=headers)
    assert (first.status_code, first.json()["title"]) == (202, body["title"])
    async with world.client(world.second) as other_replica:
        again = await other_replica.post("/api/documents", json=body, headers=headers)
    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert await world.files_hold([body["title"]]) == []


async def test_a_document_that_was_refused_claims_no_key(world: World, client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "refused document"}
    body = {"title": "Leave", "text": "28 days"}
    world.siblings.refusal = (422, "invalid_request")
    try:
        assert (await client.post("/api/documents", json=body, headers=headers)).status_code == 422
    finally:
        world.siblings.refusal = None
    accepted = await client.post("/api/documents", json=body, headers=headers)
    assert accepted.status_code == 202
    assert "idempotent-replayed" not in accepted.headers
