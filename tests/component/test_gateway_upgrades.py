"""Waiting, reading, privacy and the event stream of upgrades, on real parts."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from shared.contracts.upgrade_results import UpgradeStatus
from shared.contracts.upgrade_tasks import Stage
from shared.messaging.cloudevents import Envelope
from tests.component.gateway_world import World
from tests.component.gateway_world import module_world as module_world
from tests.conftest import eventually

PROMPT = {"userPrompt": "write about rain"}
ASYNC = {"Prefer": "respond-async"}


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    world.worker.answering = world.worker.replying = True
    world.worker.changes = {}
    async with world.client() as connected:
        yield connected


async def received(world: World, upgrade_id: str) -> Envelope:
    async def look() -> Envelope | None:
        return world.worker.last_envelope(upgrade_id)

    envelope = await eventually(look)
    assert envelope
    return envelope


def events_of(text: str) -> list[tuple[int, str, Any]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


async def test_respond_async_answers_at_once(world: World, client: httpx.AsyncClient) -> None:
    world.worker.answering = False
    started = time.monotonic()
    answer = await client.post("/api/upgrade", json=PROMPT | {"userId": "bob"}, headers=ASYNC)
    assert time.monotonic() - started < 2
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    body = answer.json()
    assert body["status"] == "accepted"
    assert body["userPrompt"] == "write about rain"
    unknown = (
        "mode",
        "language",
        "upgradedPrompt",
        "confidence",
        "prompt",
        "model",
        "error",
        "completedAt",
        "latencyMs",
    )
    assert all(body[name] is None for name in unknown)
    assert (body["missingQuestions"], body["citations"], body["warnings"], body["reasoning"]) == ([], [], [], "")
    assert body["usage"] == {"tokensIn": 0, "tokensOut": 0, "embeddings": 0, "costUsd": "0.000000000", "components": []}
    assert (await client.get(answer.headers["location"])).json() == body
    await world.worker.answer(await received(world, body["id"]))
    ended = (await client.get(answer.headers["location"])).json()
    assert ended["status"] == "upgraded"
    assert ended["userRef"] == body["userRef"]


async def test_waiting_ends_when_the_client_said(world: World, client: httpx.AsyncClient) -> None:
    world.worker.answering = False
    started = time.monotonic()
    answer = await client.post("/api/upgrade", json=PROMPT, headers={"Prefer": "wait=1"})
    assert 0.9 < time.monotonic() - started < 3
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "wait=1"


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("wait=600", "wait=60"),
        ("wait=nonsense", "wait=30"),
        ("handling=lenient", "wait=30"),
        ("wait=5; foo=bar, respond-async", "respond-async, wait=5"),
        ("WAIT=7", "wait=7"),
    ],
)
async def test_preferences(client: httpx.AsyncClient, prefer: str, applied: str) -> None:
    answer = await client.post("/api/upgrade", json=PROMPT, headers={"Prefer": prefer})
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == applied


async def test_a_missed_reply_is_found(world: World, client: httpx.AsyncClient) -> None:
    world.worker.replying = False
    started = time.monotonic()
    answer = await client.post("/api/upgrade", json=PROMPT)
    assert answer.status_code == 200
    assert time.monotonic() - started < 5


async def test_many_waiters_are_looked_up_together(world: World, client: httpx.AsyncClient) -> None:
    world.worker.replying = False
    before = world.siblings.lookups
    answers = await asyncio.gather(*(client.post("/api/upgrade", json=PROMPT) for _ in range(60)))
    assert {answer.status_code for answer in answers} == {200}
    assert world.siblings.lookups - before < 20


SECRETS = ("ann.smith@example.com", "4111 1111 1111 1111", "sk-proj-Zk39fjKQ0pLm28sXvB71aWq9Rt5Yu2Ei")


async def test_personal_values_stay_inside(world: World, client: httpx.AsyncClient) -> None:
    mail, card, key = SECRETS
    body = {
        "userPrompt": f"Write to {mail} that card {card} was charged. Keep <EMAIL_7> as it is.",
        "conversationHistory": [{"role": "user", "content": f"My key is {key} and I am {mail}"}],
        "userId": "dora@example.org",
    }
    answer = (await client.post("/api/upgrade", json=body)).json()
    assert answer["userPrompt"] == body["userPrompt"]
    assert answer["upgradedPrompt"] == f"Better: {body['userPrompt']}"
    assert answer["reasoning"] == f"It said {body['userPrompt']}"
    assert answer["warnings"] == []
    task = world.worker.tasks(answer["id"])[0][1]
    sent = task.to_json().decode()
    assert not [secret for secret in (*SECRETS, "dora@example.org") if secret in sent]
    assert task.sealed_pii is None
    assert task.placeholder_counts["EMAIL"] >= 1
    # The history comes first, so its placeholders do not change as the conversation grows.
    assert "<EMAIL_1>" in task.conversation_history[0].content
    assert "<EMAIL_1>" in task.user_prompt
    assert await world.files_hold([*SECRETS, "dora@example.org"]) == []


async def test_what_the_prompt_shows_to_be_secret_is_so_in_the_history(world: World, client: httpx.AsyncClient) -> None:
    said = [{"role": "user", "content": "I always type zq9-Later!A there"}]
    body = {"userPrompt": "My password is zq9-Later!A now", "conversationHistory": said}
    answer = (await client.post("/api/upgrade", json=body)).json()
    task = world.worker.tasks(answer["id"])[0][1]
    assert "zq9-Later" not in task.to_json().decode()
    assert answer["userPrompt"] == "My password is zq9-Later!A now"


async def test_without_redaction_the_map_travels_sealed(world: World, client: httpx.AsyncClient) -> None:
    body = {"userPrompt": f"Write to {SECRETS[0]}", "options": {"enablePIIRedaction": False}}
    answer = (await client.post("/api/upgrade", json=body)).json()
    task = world.worker.tasks(answer["id"])[0][1]
    assert task.sealed_pii is not None
    assert task.options.enable_pii_redaction is False
    assert SECRETS[0] not in task.to_json().decode()
    assert answer["upgradedPrompt"] == f"Better: Write to {SECRETS[0]}"


async def test_what_a_model_does_to_placeholders_is_reported(world: World, client: httpx.AsyncClient) -> None:
    world.worker.changes = {"upgraded_prompt": "Write to <EMAIL_1> or <EMAIL_1> or <PHONE_9>"}
    answer = (await client.post("/api/upgrade", json={"userPrompt": "Write a@b.org and c@d.org"})).json()
    assert {w["code"]: w["detail"].split()[0] for w in answer["warnings"]} == {
        "placeholder_dropped": "EMAIL_2",
        "placeholder_invented": "PHONE_9",
        "placeholder_doubled": "EMAIL_1",
    }
    assert answer["upgradedPrompt"] == "Write to a@b.org or a@b.org or <PHONE_9>"


async def test_a_failed_upgrade_says_why(world: World, client: httpx.AsyncClient) -> None:
    world.worker.changes = {
        "status": UpgradeStatus.FAILED,
        "upgraded_prompt": None,
        "error": {"code": "unprocessable", "detail": "No."},
    }
    answer = await client.post("/api/upgrade", json=PROMPT)
    assert answer.status_code == 200
    assert answer.json()["upgradedPrompt"] is None
    assert answer.json()["error"] == {"code": "unprocessable", "detail": "No."}


async def test_pages_by_status_and_user(world: World, client: httpx.AsyncClient) -> None:
    made = []
    for number in range(5):
        world.worker.answering = number < 3
        headers = {} if number < 3 else ASYNC
        body = {"userPrompt": f"number {number}", "userId": "carl"}
        made.append((await client.post("/api/upgrade", json=body, headers=headers)).json()["id"])

    async def ids(**query: Any) -> list[str]:
        found, cursor = [], None
        while True:
            page = (await client.get("/api/upgrades", params=query | ({"cursor": cursor} if cursor else {}))).json()
            assert len(page["items"]) <= query["limit"]
            found += [item["id"] for item in page["items"]]
            cursor = page["nextCursor"]
            if cursor is None:
                return found

    assert await ids(limit=2, userId="carl") == made[::-1]
    assert await ids(limit=5, userId="carl") == made[::-1]
    assert await ids(limit=200, userId="carl", status="upgraded") == made[2::-1]
    assert await ids(limit=1, userId="carl", status="accepted") == [made[4], made[3]]
    assert await ids(limit=10, userId="carl", status="failed") == []
    assert await ids(limit=10, userId="nobody") == []
    everything = await ids(limit=7)
    assert everything == sorted(everything, reverse=True)
    assert set(made) < set(everything)


async def test_events_as_they_happen(world: World, client: httpx.AsyncClient) -> None:
    world.worker.answering = False
    upgrade_id = (await client.post("/api/upgrade", json=PROMPT, headers=ASYNC)).json()["id"]
    envelope = await received(world, upgrade_id)
    lines: asyncio.Queue[str] = asyncio.Queue()

    async def follow() -> str:
        text = ""
        async with client.stream("GET", f"/api/upgrades/{upgrade_id}/events") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            async for line in stream.aiter_lines():
                text += line + "\n"
                await lines.put(line)
        return text

    following = asyncio.create_task(follow())
    while await asyncio.wait_for(lines.get(), 5) != "event: accepted":
        pass
    await world.worker.stage(envelope, Stage.RAG)
    while await asyncio.wait_for(lines.get(), 5) != "event: stage":
        pass
    await world.worker.stage(envelope, Stage.UPGRADER)
    await world.worker.answer(envelope)
    events = events_of(await asyncio.wait_for(following, 10))
    assert [(step, name) for step, name, _ in events] == [
        (1, "accepted"), (4, "stage"), (5, "stage"), (6, "stage"), (7, "stage"), (8, "completed"),
    ]  # fmt: skip
    assert events[1][2] == {"stage": "rag", "state": "started", "latencyMs": None}
    assert events[2][2] == {"stage": "rag", "state": "finished", "latencyMs": 5}
    assert events[-1][2] == (await client.get(f"/api/upgrades/{upgrade_id}")).json()

    resumed = await client.get(f"/api/upgrades/{upgrade_id}/events", headers={"Last-Event-ID": "5"})
    assert [step for step, _, _ in events_of(resumed.text)] == [6, 7, 8]
    over = await client.get(f"/api/upgrades/{upgrade_id}/events", headers={"Last-Event-ID": "8"})
    assert events_of(over.text) == []
    for wrong in ("nonsense", "99", "-1", "0" * 5000):
        refused = await client.get(f"/api/upgrades/{upgrade_id}/events", headers={"Last-Event-ID": wrong})
        assert refused.json()["code"] == "invalid_header"


async def test_a_lost_stream_is_rebuilt(world: World, client: httpx.AsyncClient) -> None:
    body = (await client.post("/api/upgrade", json=PROMPT)).json()
    await world.worker._redis.flushall()
    events = events_of((await client.get(f"/api/upgrades/{body['id']}/events")).text)
    assert [(step, name) for step, name, _ in events] == [(1, "accepted"), (5, "stage"), (7, "stage"), (8, "completed")]
    assert events[2][2] == {"stage": "upgrader", "state": "finished", "latencyMs": 7}
    assert events[3][2] == body


async def test_a_stream_that_is_lost_while_it_is_followed(world: World, client: httpx.AsyncClient) -> None:
    world.worker.answering = False
    upgrade_id = (await client.post("/api/upgrade", json=PROMPT, headers=ASYNC)).json()["id"]
    envelope = await received(world, upgrade_id)
    following = asyncio.create_task(client.get(f"/api/upgrades/{upgrade_id}/events"))
    await world.worker.stage(envelope, Stage.RAG)
    await world.worker._redis.flushall()
    world.worker.replying = False
    await world.worker.answer(envelope)
    events = events_of((await asyncio.wait_for(following, 10)).text)
    assert (events[0][1], events[-1][1]) == ("accepted", "completed")
    assert [step for step, _, _ in events] == sorted({step for step, _, _ in events})


async def test_a_client_that_goes_away_cancels_nothing(world: World, client: httpx.AsyncClient) -> None:
    world.worker.answering = False
    before = len(world.worker.received)
    with pytest.raises(httpx.ReadTimeout):
        await client.post("/api/upgrade", json=PROMPT, timeout=0.3)

    async def arrived() -> bool:
        return len(world.worker.received) > before

    await eventually(arrived)
    envelope = world.worker.received[-1][1]
    result = await world.worker.answer(envelope)
    assert (await client.get(f"/api/upgrades/{result.upgrade_id}")).json()["status"] == "upgraded"


async def test_the_trace_goes_on_into_the_message(world: World, client: httpx.AsyncClient) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    upgrade_id = (await client.post("/api/upgrade", json=PROMPT, headers=headers)).json()["id"]
    envelope = await received(world, upgrade_id)
    assert envelope.traceparent is not None
    assert trace in envelope.traceparent
    assert envelope.subject == upgrade_id
    assert envelope.source == "gateway"
    other = await received(world, (await client.post("/api/upgrade", json=PROMPT)).json()["id"])
    assert other.traceparent is not None
    assert trace not in other.traceparent


async def test_records_are_closed_when_usage_has_them(world: World, client: httpx.AsyncClient) -> None:
    world.siblings.usage.counting = False
    upgrade_id = (await client.post("/api/upgrade", json=PROMPT)).json()["id"]

    async def record() -> dict[str, Any]:
        return next(r for r in await world.records() if r["_id"] == upgrade_id)

    async def has_ended() -> bool:
        return "openSince" not in await record() and "uncountedSince" in await record()

    async def is_closed() -> bool:
        return "uncountedSince" not in await record()

    await eventually(has_ended)
    world.siblings.usage.counting = True
    await eventually(is_closed)
    assert (await record())["outcome"] == "upgraded"


async def test_documents(world: World, client: httpx.AsyncClient) -> None:
    files = {"file": ("../Leave policy.md", b"# Leave\n28 days", "text/markdown")}
    uploaded = await client.post("/api/documents", files=files)
    assert uploaded.status_code == 202
    view = uploaded.json()
    assert set(view) == {"id", "title", "status", "chunks", "error", "createdAt"}
    assert view["title"] == "Leave policy.md"
    assert uploaded.headers["location"] == f"/api/documents/{view['id']}"
    stored = world.siblings.documents[view["id"]]
    assert (stored["content"], stored["mediaType"]) == (b"# Leave\n28 days", "text/markdown")
    titled = await client.post("/api/documents", files=files, data={"title": "Paid leave"})
    assert titled.json()["title"] == "Paid leave"
    text = await client.post("/api/documents", json={"title": "T", "text": "Hello"})
    assert world.siblings.documents[text.json()["id"]]["content"] == b"Hello"

    listed = (await client.get("/api/documents", params={"limit": 2})).json()
    assert [item["id"] for item in listed["items"]] == [text.json()["id"], titled.json()["id"]]
    rest = (await client.get("/api/documents", params={"limit": 2, "cursor": listed["nextCursor"]})).json()
    assert [item["id"] for item in rest["items"]] == [view["id"]]
    assert (await client.get(uploaded.headers["location"])).json() == view

    found = await client.post("/api/documents/search", json={"query": "days off", "topK": 3, "minScore": 0.1})
    assert found.json() == {"items": [{"documentId": "d", "title": "T", "score": 0.5, "text": "days off"}]}
    assert (await client.delete(uploaded.headers["location"])).status_code == 204
    assert (await client.delete(uploaded.headers["location"])).json()["code"] == "not_found"
    assert (await client.get(uploaded.headers["location"])).json()["code"] == "not_found"


@pytest.mark.parametrize(
    ("options", "status", "code", "field"),
    [
        ({"json": {"title": "", "text": "x"}}, 422, "invalid_request", "title"),
        ({"json": {"title": "t"}}, 422, "invalid_request", "text"),
        ({"json": {"title": "t", "text": "x", "z": 1}}, 422, "invalid_request", "z"),
        ({"files": {"file": ("a.txt", b"")}}, 422, "invalid_request", "file"),
        ({"files": {"document": ("a.txt", b"x")}}, 422, "invalid_request", "document"),
        ({"files": [("file", ("a.txt", b"x")), ("file", ("b.txt", b"x"))]}, 422, "invalid_request", "file"),
        ({"data": {"title": "x"}, "files": {"title2": ("a", b"x")}}, 422, "invalid_request", "title2"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 422, "invalid_request", "body"),
        (
            {"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
            422,
            "invalid_request",
            None,
        ),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "malformed_json", None),
        ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "unsupported_media_type", None),
        ({"files": {"file": ("a.txt", b"x" * (20 * 1024 * 1024 + 1))}}, 413, "too_large", None),
        ({"json": {"title": "t", "text": "x" * (20 * 1024 * 1024 + 1)}}, 413, "too_large", None),
    ],
)
async def test_wrong_documents(
    world: World, client: httpx.AsyncClient, options: dict[str, Any], status: int, code: str, field: str | None
) -> None:
    before = len(world.siblings.documents)
    answer = await client.post("/api/documents", **options)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    if field:
        assert field in [error["field"] for error in answer.json()["errors"]]
    assert len(world.siblings.documents) == before


async def test_rag_refuses_or_is_out(world: World, client: httpx.AsyncClient) -> None:
    world.siblings.refusal = (415, "unsupported_media_type")
    try:
        refused = await client.post("/api/documents", files={"file": ("a.exe", b"MZ")})
    finally:
        world.siblings.refusal = None
    assert (refused.status_code, refused.json()["code"]) == (415, "unsupported_media_type")
    world.siblings.out = True
    try:
        out = await client.get("/api/documents")
        upgrade = await client.post("/api/upgrade", json=PROMPT)
    finally:
        world.siblings.out = False
    assert (out.status_code, out.json()["code"]) == (503, "unavailable")
    assert out.headers["retry-after"]
    assert upgrade.status_code == 200


async def test_a_search_with_wrong_fields(client: httpx.AsyncClient) -> None:
    for body, field in (({"query": " "}, "query"), ({"query": "x", "topK": 99}, "topK"), ({}, "query")):
        answer = await client.post("/api/documents/search", json=body)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == field
