"""The running service: documents and searches over HTTP, upgrades and events over the broker."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.rag.indexing.file_types import MAX_UPLOAD_BYTES
from shared.contracts.internal_http import INTERNAL_TOKEN_HEADER
from shared.contracts.topics import DOCUMENTS_INDEXED, USAGE_RECORDED
from shared.contracts.usage import UsageRecorded
from shared.messaging.topics import create_topics
from tests.component.rag_parts import task_for
from tests.component.rag_world import LEAVE, World, rag_settings, running
from tests.conftest import eventually
from tests.model_server import ModelServer, Step
from tests.model_server import module_model as module_model
from tests.unit.test_rag_files import pdf_of


@pytest.fixture(scope="module")
async def world(
    kafka_servers: str, redis_url: str, model: ModelServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """One service for all tests: each has a tenant of its own."""
    settings = rag_settings(kafka_servers, redis_url, model.url, tmp_path_factory.mktemp("rag"))
    await create_topics(settings)
    async with running(settings) as world:
        yield world


async def test_a_document_is_cited_until_it_is_deleted(world: World) -> None:
    answer = await world.upload(
        "t-flow", pdf_of(LEAVE), title="Handbook", filename="h.pdf", mediaType="application/pdf"
    )
    assert answer.status_code == 202
    document = answer.json()
    assert (document["status"], document["title"], document["error"]) == ("pending", "Handbook", None)
    view = await world.indexed("t-flow", document["id"])
    assert (view["status"], view["chunks"]) == ("indexed", 1)
    exists = await world.http.get("/internal/tenants/t-flow/documents/exists")
    assert exists.json() == {"exist": True}

    [hit] = await world.search("t-flow", "days of paid leave")
    assert hit["documentId"] == document["id"]
    assert "jane.doe@example.org" in hit["text"]  # the tenant's own words, for the tenant

    output = await world.retrieved(task_for("t-flow", "How many days of paid leave per year?", counts={"EMAIL": 1}))
    assert output.chunks[0].document_id == document["id"]
    assert "<EMAIL_2>" in output.chunks[0].text
    assert sum(use.embeddings for use in output.usage) == 1

    deleted = await world.http.delete(f"/internal/documents/{document['id']}", params={"tenantId": "t-flow"})
    assert deleted.status_code == 204
    assert await world.search("t-flow", "days of paid leave") == []
    assert (await world.retrieved(task_for("t-flow", "How many days of paid leave per year?"))).chunks == []
    assert (await world.http.get("/internal/tenants/t-flow/documents/exists")).json() == {"exist": False}
    again = await world.http.delete(f"/internal/documents/{document['id']}", params={"tenantId": "t-flow"})
    assert (again.status_code, again.json()["code"]) == (404, "not_found")


async def test_events_report_what_was_indexed_and_used(world: World, model: ModelServer) -> None:
    text = "\n\n".join(f"# Rule {number}\n\nRule number {number} is kept." for number in range(5))
    document = (await world.upload("t-facts", text.encode(), filename="a.md")).json()["id"]
    await world.indexed("t-facts", document)
    await world.search("t-facts", "a rule")

    async def both() -> bool:
        indexed = [
            fact for fact in await world.events(DOCUMENTS_INDEXED) if getattr(fact, "document_id", "") == document
        ]
        used = [fact for fact in await world.events(USAGE_RECORDED) if getattr(fact, "tenant_id", "") == "t-facts"]
        embedded = {fact.event_id: fact for fact in used if isinstance(fact, UsageRecorded)}
        return bool(indexed) and sum(fact.embeddings for fact in embedded.values()) == 5 + 1

    assert await eventually(both, 20)
    sent = [text for request in model.received("embeddings") for text in request.body["input"]]
    assert all("@" not in text for text in sent)


@pytest.mark.parametrize(
    ("data", "params", "status", "code"),
    [
        (b"", {"filename": "a.txt"}, 422, "invalid_request"),
        (b"not one", {"filename": "a.pdf", "mediaType": "application/pdf"}, 422, "invalid_request"),
        (pdf_of("x", password="p"), {"filename": "a.pdf"}, 422, "invalid_request"),
        (bytes(range(256)) * 16, {}, 415, "unsupported_media_type"),
        (b"x" * (MAX_UPLOAD_BYTES + 1), {"filename": "a.txt"}, 413, "too_large"),
    ],
    ids=["empty", "not a pdf", "encrypted", "binary", "too large"],
)
async def test_bad_files_are_refused_and_leave_nothing(
    world: World, data: bytes, params: dict[str, str], status: int, code: str
) -> None:
    answer = await world.upload("t-bad", data, **params)
    body = answer.json()
    assert (answer.status_code, body["code"], answer.headers["content-type"]) == (
        status,
        code,
        "application/problem+json",
    )
    if status == 422:
        assert body["errors"] == [{"field": "file", "detail": body["detail"]}]
    page = await world.http.get("/internal/documents", params={"tenantId": "t-bad"})
    assert page.json() == {"items": []}


async def test_a_deleted_document_is_a_conflict_when_it_is_sent_again(world: World) -> None:
    document = (await world.upload("t-again", LEAVE.encode(), filename="a.txt")).json()["id"]
    gone = await world.http.delete(f"/internal/documents/{document}", params={"tenantId": "t-again"})
    assert gone.status_code == 204
    again = await world.upload("t-again", LEAVE.encode(), filename="a.txt", documentId=document)
    assert (again.status_code, again.json()["code"]) == (409, "conflict")


async def test_routes_want_the_token_and_keep_tenants_apart(world: World) -> None:
    document = (await world.upload("t-owner", LEAVE.encode(), filename="a.txt")).json()["id"]
    await world.indexed("t-owner", document)
    other = {"tenantId": "t-other"}
    assert (await world.http.get(f"/internal/documents/{document}", params=other)).status_code == 404
    assert (await world.http.delete(f"/internal/documents/{document}", params=other)).status_code == 404
    assert (await world.http.delete("/internal/documents/x' OR 1=1", params=other)).status_code == 404
    assert (await world.http.get("/internal/documents", params=other)).json() == {"items": []}
    taken = await world.upload("t-other", LEAVE.encode(), filename="a.txt", documentId=document)
    assert (taken.status_code, taken.json()["code"]) == (409, "conflict")
    assert await world.search("t-other", "days of paid leave") == []
    assert (await world.retrieved(task_for("t-other", "days of paid leave"))).chunks == []
    for path in (f"/internal/documents/{document}", "/internal/tenants/t-owner/documents/exists"):
        denied = await world.http.get(path, params={"tenantId": "t-owner"}, headers={INTERNAL_TOKEN_HEADER: "wrong"})
        assert denied.status_code == 401
    assert len(await world.search("t-owner", "days of paid leave", topK=500, minScore=0.0)) == 1


async def test_a_model_that_is_out_delays_documents_and_stops_no_upgrade(world: World, model: ModelServer) -> None:
    first = (await world.upload("t-out", LEAVE.encode(), filename="a.txt")).json()["id"]
    await world.indexed("t-out", first)
    model.behaviour.default = Step(status=500, path="embeddings")
    output = await world.retrieved(task_for("t-out", "vacation per annum for staff members"))
    assert [warning.code for warning in output.warnings] == ["retrieval_skipped"]
    second = (await world.upload("t-out", b"Visitors sign in at the front desk.", filename="b.txt")).json()["id"]
    view = await world.http.get(f"/internal/documents/{second}", params={"tenantId": "t-out"})
    assert view.json()["status"] == "pending"
    model.behaviour.default = Step()
    assert (await world.indexed("t-out", second))["status"] == "indexed"


async def test_readiness_reports_store_index_redis_and_groups(world: World) -> None:
    assert await world.ready()
    checks = (await world.http.get("/health/ready")).json()["checks"]
    assert set(checks) == {"process", "store", "index", "redis", "retrieve group", "index group"}


async def test_many_searches_at_once(world: World) -> None:
    document = (await world.upload("t-many", LEAVE.encode(), filename="a.txt")).json()["id"]
    await world.indexed("t-many", document)
    found = await asyncio.gather(*(world.search("t-many", f"paid leave {number % 7}") for number in range(100)))
    assert all(items[0]["documentId"] == document for items in found)


async def test_a_search_holds_its_embedding_unless_it_is_cached(world: World) -> None:
    document = (await world.upload("t-held", LEAVE.encode(), filename="a.md")).json()["id"]
    await world.indexed("t-held", document)
    before = set(world.gateway.taken)
    await world.search("t-held", "how long is the leave")
    [hold_id] = set(world.gateway.taken) - before
    assert world.gateway.taken[hold_id].tenant_id == "t-held"
    assert [event.embeddings for event in world.gateway.ended[hold_id]] == [1]
    # A cached query uses no quota.
    world.gateway.room = 0
    try:
        assert await world.search("t-held", "how long is the leave")
        refused = await world.http.post(
            "/internal/documents/search", params={"tenantId": "t-held"}, json={"query": "something else"}
        )
    finally:
        world.gateway.room = None
    assert refused.status_code == 429
    assert (refused.json()["code"], refused.json()["meter"], refused.json()["limit"]) == (
        "quota_exceeded",
        "embeddings",
        9,
    )
