"""Answers to valid and invalid requests by a gateway with real stores and broker."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from shared.contracts.token_bounds import RECENT_MESSAGE_CHARACTERS, RECENT_MESSAGES
from shared.contracts.upgrade_http import UpgradeRequest
from tests.component.gateway_world import API_KEY, World
from tests.component.gateway_world import module_client as module_client
from tests.component.gateway_world import module_world as module_world
from tests.conftest import eventually

PROMPT = {"userPrompt": "write about rain"}


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["code"] == code
    assert body["type"]
    assert body["title"]
    assert body["detail"]
    assert body["requestId"] == answer.headers["x-request-id"]
    return body


async def test_an_upgrade_comes_back(world: World, client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/upgrade", json=PROMPT | {"userId": "ann"})
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {
        "id", "status", "mode", "language", "userPrompt", "userRef", "upgradedPrompt", "reasoning", "missingQuestions",
        "confidence", "citations", "prompt", "model", "usage", "warnings", "error", "createdAt", "completedAt",
        "latencyMs",
    }  # fmt: skip
    assert body["status"] == "upgraded"
    assert body["upgradedPrompt"] == "Better: write about rain"
    assert body["userRef"].startswith("u_")
    assert body["usage"]["costUsd"] == "0.000000005"
    assert body["usage"]["components"][0]["costUsd"] == "0.000000005"
    assert answer.headers["location"] == f"/api/upgrades/{body['id']}"
    assert answer.headers["preference-applied"] == "wait=30"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "idempotent-replayed" not in answer.headers
    assert (await client.get(answer.headers["location"])).json() == body


async def test_stages_that_are_not_needed_are_left_out(world: World, client: httpx.AsyncClient) -> None:
    hello = {"role": "user", "content": "hello"}
    short = {"conversationHistory": [hello] * RECENT_MESSAGES}
    history = {"conversationHistory": [hello] * (RECENT_MESSAGES + 1)}
    wordy = {"conversationHistory": [hello | {"content": "x" * (RECENT_MESSAGE_CHARACTERS + 1)}]}
    no_rag, no_summary = {"options": {"enableRAG": False}}, {"options": {"enableSummarization": False}}
    world.siblings.documents_exist = True
    cases: list[tuple[dict[str, Any], list[str]]] = [
        (PROMPT, ["rag", "upgrader"]),
        # The rewriter reads a short conversation as it is.
        (PROMPT | short, ["rag", "upgrader"]),
        (PROMPT | history, ["summarizer", "rag", "upgrader"]),
        (PROMPT | wordy, ["summarizer", "rag", "upgrader"]),
        (PROMPT | history | no_rag, ["summarizer", "upgrader"]),
        (PROMPT | history | no_summary, ["rag", "upgrader"]),
        (PROMPT | no_rag, ["upgrader"]),
    ]
    for body, expected in cases:
        upgrade_id = (await client.post("/api/upgrade", json=body)).json()["id"]
        [(topic, task)] = world.worker.tasks(upgrade_id)
        assert [stage.value for stage in task.itinerary] == expected
        assert topic.split(".")[1] == {"summarizer": "summarize", "rag": "retrieve", "upgrader": "rewrite"}[expected[0]]


async def test_a_tenant_without_documents_skips_retrieval(world: World, client: httpx.AsyncClient) -> None:
    world.siblings.documents_exist = False

    async def skipped() -> bool:
        upgrade_id = (await client.post("/api/upgrade", json=PROMPT)).json()["id"]
        return [stage.value for stage in world.worker.tasks(upgrade_id)[0][1].itinerary] == ["upgrader"]

    try:
        await eventually(skipped)
    finally:
        world.siblings.documents_exist = True


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({}, "userPrompt"),
    ({"userPrompt": ""}, "userPrompt"),
    ({"userPrompt": " \n\t "}, "userPrompt"),
    ({"userPrompt": "x" * 10_001}, "userPrompt"),
    ({"userPrompt": 7}, "userPrompt"),
    ({"userPrompt": None}, "userPrompt"),
    ({"user_prompt": "x", "userPrompt": "x"}, "user_prompt"),
    ({"userPrompt": "x", "surprise": 1}, "surprise"),
    ({"userPrompt": "x", "userId": "u" * 129}, "userId"),
    ({"userPrompt": "x", "userId": 5}, "userId"),
    ({"userPrompt": "x", "conversationHistory": "hello"}, "conversationHistory"),
    ({"userPrompt": "x", "conversationHistory": [{"role": "user", "content": "a"}] * 101}, "conversationHistory"),
    ({"userPrompt": "x", "conversationHistory": [{"role": "user", "content": "a" * 100_001}]}, "conversationHistory"),
    (
        {
            "userPrompt": "x",
            "conversationHistory": [{"role": "user", "content": "a"}] * 3 + [{"role": "robot", "content": ""}],
        },
        "conversationHistory[3].role",
    ),
    ({"userPrompt": "x", "conversationHistory": [{"role": "user"}]}, "conversationHistory[0].content"),
    (
        {"userPrompt": "x", "conversationHistory": [{"role": "user", "content": "a", "b": 1}]},
        "conversationHistory[0].b",
    ),
    ({"userPrompt": "x", "options": {"enableRAG": "yes"}}, "options.enableRAG"),
    ({"userPrompt": "x", "options": {"enableRag": True}}, "options.enableRag"),
    ({"userPrompt": "x", "options": {"ragTopK": 0}}, "options.ragTopK"),
    ({"userPrompt": "x", "options": {"ragTopK": 21}}, "options.ragTopK"),
    ({"userPrompt": "x", "options": {"ragTopK": "5"}}, "options.ragTopK"),
    ({"userPrompt": "x", "options": {"ragMinScore": 1.5}}, "options.ragMinScore"),
    ({"userPrompt": "x", "options": 3}, "options"),
]


@pytest.mark.parametrize(("body", "field"), BAD_FIELDS)
async def test_a_wrong_field_is_named(
    world: World, client: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    before = len(await world.records())
    answer = await client.post("/api/upgrade", json=body, headers={"Idempotency-Key": "never-claimed"})
    errors = problem(answer, 422, "invalid_request")["errors"]
    assert field in [error["field"] for error in errors]
    assert all(error["detail"] for error in errors)
    assert len(await world.records()) == before


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1,", b'{"userPrompt": "x"', b"\xff\xfe", b'{"userPrompt": "\xff"}', b"[" * 100_000, b"nonsense"],
)
async def test_malformed_json(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post("/api/upgrade", content=body, headers={"Content-Type": "application/json"})
    problem(answer, 400, "malformed_json")


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b" \n", "The body is empty."),
        (b'{"userPrompt": "\xff"}', "The body is not UTF-8."),
        (b'{\n  "userPrompt": "x",\n}', "The body is not valid JSON: line 3, column 1."),
    ],
)
async def test_malformed_json_is_located(client: httpx.AsyncClient, body: bytes, detail: str) -> None:
    answer = await client.post("/api/upgrade", content=body, headers={"Content-Type": "application/json"})
    assert problem(answer, 400, "malformed_json")["detail"] == detail


async def test_the_root_leads_to_the_docs(client: httpx.AsyncClient) -> None:
    answer = await client.get("/", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "/docs")
    assert "strict-transport-security" not in answer.headers


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"5", b"null"])
async def test_json_that_is_no_object(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post("/api/upgrade", content=body, headers={"Content-Type": "application/json"})
    assert problem(answer, 422, "invalid_request")["errors"][0]["field"] == "body"


@pytest.mark.parametrize(
    "content_type", ["text/plain", "", "application/x-www-form-urlencoded", "application/json; charset=utf-16"]
)
async def test_a_wrong_content_type(client: httpx.AsyncClient, content_type: str) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    problem(
        await client.post("/api/upgrade", content=b'{"userPrompt":"x"}', headers=headers), 415, "unsupported_media_type"
    )


async def test_a_compressed_body_is_refused(client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    problem(await client.post("/api/upgrade", content=b"x", headers=headers), 415, "unsupported_media_type")


async def test_a_body_that_is_too_large(client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/json"}
    problem(await client.post("/api/upgrade", content=b"x" * (2 * 1024 * 1024 + 1), headers=headers), 413, "too_large")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 65_536

    # Chunked: nothing announces the size.
    problem(await client.post("/api/upgrade", content=chunks(), headers=headers), 413, "too_large")


async def test_a_body_of_almost_two_mebibytes_is_read(client: httpx.AsyncClient) -> None:
    body = b'{"userPrompt": "x"' + b" " * (2 * 1024 * 1024 - 30) + b"}"
    answer = await client.post("/api/upgrade", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200


async def test_the_longest_request_that_is_allowed(client: httpx.AsyncClient) -> None:
    history = [{"role": "assistant", "content": "ж" * 1_000}] * 100
    body = {"userPrompt": "я" * 10_000, "conversationHistory": history, "userId": "u" * 128}
    answer = await client.post("/api/upgrade", json=body)
    assert answer.status_code == 200
    assert answer.json()["userPrompt"] == "я" * 10_000


async def test_odd_characters_break_nothing(client: httpx.AsyncClient) -> None:
    nul = await client.post("/api/upgrade", json={"userPrompt": "a\x00b\u2028c", "userId": "\x00"})
    assert nul.status_code == 200
    assert nul.json()["userPrompt"] == "a\x00b\u2028c"
    surrogate = await client.post(
        "/api/upgrade",
        content=rb'{"userPrompt": "cut \ud83d here \ud83d\ude00"}',
        headers={"Content-Type": "application/json"},
    )
    assert surrogate.status_code == 200
    assert surrogate.json()["userPrompt"] == "cut \ufffd here \U0001f600"
    for answer in (nul, surrogate):
        assert (await client.get(answer.headers["location"])).json() == answer.json()
        events = (await client.get(answer.headers["location"] + "/events")).text
        assert events.count("event: completed") == 1


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": "pu_wrong"},
        {"Authorization": f"Basic {API_KEY}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"X-API-Key": API_KEY, "Authorization": "Bearer other"},
        {"X-API-Key": "other", "Authorization": f"Bearer {API_KEY}"},
    ],
)
async def test_unknown_credentials_are_refused(world: World, headers: dict[str, str]) -> None:
    async with httpx.AsyncClient(base_url=world.gateway.url, headers=headers) as stranger:
        calls = [
            stranger.post("/api/upgrade", json=PROMPT),
            stranger.get("/api/upgrades"),
            stranger.get("/api/upgrades/01900000-0000-7000-8000-000000000000"),
            stranger.get("/api/upgrades/01900000-0000-7000-8000-000000000000/events"),
            stranger.post("/api/documents", json={"title": "t", "text": "x"}),
            stranger.get("/api/documents"),
            stranger.get("/api/documents/01900000-0000-7000-8000-000000000000"),
            stranger.delete("/api/documents/01900000-0000-7000-8000-000000000000"),
            stranger.post("/api/documents/search", json={"query": "x"}),
        ]
        for answer in await asyncio.gather(*calls):
            problem(answer, 401, "unauthenticated")
            assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_both_ways_to_send_the_key(world: World) -> None:
    for headers in (
        {"Authorization": f"Bearer {API_KEY}"},
        {"Authorization": f"bearer {API_KEY}", "X-API-Key": API_KEY},
    ):
        async with httpx.AsyncClient(base_url=world.gateway.url, headers=headers) as client:
            assert (await client.get("/api/upgrades")).status_code == 200


async def test_unknown_addresses_and_methods(client: httpx.AsyncClient) -> None:
    for path in ("/api", "/api/upgrade/", "/api/nothing", "/api/upgrades/no-uuid"):
        problem(await client.get(path), 404, "not_found")
    problem(await client.get("/api/upgrades/01900000-0000-7000-8000-000000000000"), 404, "not_found")
    answer = await client.get("/api/upgrade")
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    problem(await client.put("/api/documents", json={}), 405, "method_not_allowed")


async def test_request_ids(client: httpx.AsyncClient) -> None:
    async def echoed(given: str | bytes) -> str:
        return str(
            (await client.get("/api/upgrades", headers=[(b"X-Request-Id", _bytes(given))])).headers["x-request-id"]
        )

    assert await echoed("trace-1 of 2") == "trace-1 of 2"
    assert await echoed("x" * 128) == "x" * 128
    assert await echoed("x" * 129) != "x" * 129
    assert len(await echoed("")) == 36
    assert len(await echoed("é".encode())) == 36


async def test_cross_origin(client: httpx.AsyncClient) -> None:
    allowed = {"Origin": "https://app.example.org"}
    answer = await client.get("/api/upgrades", headers=allowed)
    assert answer.headers["access-control-allow-origin"] == "https://app.example.org"
    exposed = {name.strip() for name in answer.headers["access-control-expose-headers"].split(",")}
    assert {"Location", "Preference-Applied", "Idempotent-Replayed", "X-Request-Id", "Retry-After"} <= exposed
    refused = await client.get("/api/upgrades/x", headers=allowed)
    assert refused.headers["access-control-allow-origin"] == "https://app.example.org"
    preflight = await client.options(
        "/api/upgrade",
        headers=allowed | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"},
    )
    assert preflight.status_code == 200
    assert "x-request-id" in preflight.headers
    other = await client.get("/api/upgrades", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "limit=x", "cursor=zz", "cursor=YWJj", "status=done", "userId="]
)
async def test_wrong_query_fields_are_named(client: httpx.AsyncClient, query: str) -> None:
    body = problem(await client.get(f"/api/upgrades?{query}"), 422, "invalid_request")
    assert body["errors"][0]["field"] == query.partition("=")[0]


@pytest.mark.parametrize("key", ["", "k" * 256, "tab\tkey", "ключ".encode()])
async def test_a_bad_idempotency_key(client: httpx.AsyncClient, key: str | bytes) -> None:
    headers = [(b"Idempotency-Key", _bytes(key))]
    problem(await client.post("/api/upgrade", json=PROMPT, headers=headers), 400, "invalid_header")


async def test_documentation_needs_no_network(client: httpx.AsyncClient) -> None:
    openapi = (await client.get("/openapi.json")).json()
    assert {"/api/upgrade", "/api/upgrades", "/api/upgrades/{id}", "/api/documents"} <= set(openapi["paths"])
    schema = openapi["paths"]["/api/upgrade"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["$ref"].rsplit("/", 1)[-1] in openapi["components"]["schemas"]
    page = await client.get("/docs")
    assert page.status_code == 200
    assert "//cdn" not in page.text
    assert (await client.get("/static-offline-docs/swagger-ui-bundle.js")).status_code == 200
    events = await client.get("/docs/events")
    assert events.headers["content-type"].startswith("text/html")
    assert "usage.recorded.v1" in events.text
    assert "http://" not in events.text.replace("http://127.0.0.1", "")
    assert "usage.recorded.v1" in (await client.get("/asyncapi.json")).text


async def test_the_openapi_document_declares_what_the_routes_take(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parameters = operation.get("parameters", [])
            names = [(parameter["in"], parameter["name"]) for parameter in parameters]
            assert len(names) == len(set(names)), (method, path)
            in_path = {parameter["name"]: parameter for parameter in parameters if parameter["in"] == "path"}
            assert set(in_path) == set(re.findall(r"{(\w+)}", path)), (method, path)
            assert all(parameter["required"] for parameter in in_path.values())
    assert "Last-Event-ID" in _parameters(document, "/api/upgrades/{id}/events", "get")
    assert {"Prefer", "Idempotency-Key", "X-Workspace-Id"} <= _parameters(document, "/api/upgrade", "post")
    answers = document["paths"]["/api/upgrade"]["post"]["responses"]
    for status in ("200", "202"):
        assert set(answers[status]["headers"]) == {
            "Location", "Preference-Applied", "Idempotent-Replayed", "RateLimit", "RateLimit-Policy",
        }  # fmt: skip
    body = document["components"]["schemas"]["UpgradeRequest"]
    assert all("description" in field for field in body["properties"].values())
    UpgradeRequest.model_validate_json(json.dumps(body["examples"][0]))


def _parameters(document: dict[str, Any], path: str, method: str) -> set[str]:
    return {parameter["name"] for parameter in document["paths"][path][method]["parameters"]}


async def test_operators_routes(client: httpx.AsyncClient) -> None:
    await client.post("/api/upgrade", json=PROMPT)
    ready = await client.get("/health/ready")
    assert ready.json()["checks"] == {"process": "ok", "store": "ok", "redis": "ok"}
    assert (await client.get("/health/live")).status_code == 200
    metrics = (await client.get("/metrics")).text
    assert 'orchestrator_upgrade_latency_seconds_count{status="upgraded"}' in metrics
    assert 'http_requests_total{method="POST",route="/api/upgrade",status="200"}' in metrics
    assert 'route="/api/upgrades/{id}"' in metrics


async def test_an_incomplete_body(world: World) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
    head = f"POST /api/upgrade HTTP/1.1\r\nHost: x\r\nX-API-Key: {API_KEY}\r\nContent-Type: application/json\r\n"
    writer.write(f'{head}Content-Length: 100\r\n\r\n{{"userPrompt": "half'.encode())
    await writer.drain()
    writer.write_eof()
    await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert not [r for r in await world.records() if "half" in r["task"]]


GET = b"GET /api/quota HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        GET + b"X-Long: " + b"x" * 100_000,
        GET + b"X-Odd: a\x00b\r\n\r\n",
        b"GARBAGE\r\n\r\n",
        b"POST /api/upgrade HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_bytes_that_are_no_request_get_a_problem(world: World, client: httpx.AsyncClient, sent: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
    writer.write(sent)
    head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
    writer.close()
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert status == "HTTP/1.1 400 Bad Request"
    problem(httpx.Response(400, headers=headers, content=body), 400, "invalid_header")
    assert headers["connection"] == "close"
    assert len(headers["x-request-id"]) == 36
    other = (await client.get("/api/nothing")).headers
    own = {"date", "content-length", "x-request-id", "connection", "vary"}
    assert headers | dict.fromkeys(own, "") == dict(other) | dict.fromkeys(own, "")
