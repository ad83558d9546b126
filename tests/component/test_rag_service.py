"""The whole service as it runs: HTTP in, both inboxes on a broker, Redis, store, index and a model server."""

import asyncio
import os
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.rag.app import RagApp, build_app
from services.rag.file_types import MAX_UPLOAD_BYTES
from services.rag.settings import RagSettings
from shared.contracts.contract import Contract
from shared.contracts.internal_http import INTERNAL_TOKEN_HEADER
from shared.contracts.topics import DOCUMENTS_INDEXED, RETRIEVE, REWRITE, USAGE_RECORDED, Topic
from shared.contracts.upgrade_tasks import RetrieveTask, Stage, StageOutput, UpgradeTask
from shared.contracts.usage_events import UsageRecorded
from shared.messaging.cloudevents import decode
from shared.messaging.producer import EventProducer
from shared.messaging.topic_admin import create_topics
from tests.component.messaging_setup import records_of
from tests.component.rag_parts import task_for
from tests.conftest import eventually
from tests.model_server import ModelServer, Step
from tests.model_server import scripted_model as scripted_model
from tests.unit.test_rag_files import pdf_of

TOKEN = "internal-token-of-the-test"
LEAVE = "Employees are entitled to 25 days of paid leave per calendar year. Ask jane.doe@example.org."


class World:
    """A running rag, its HTTP and the broker around it."""

    def __init__(self, app: RagApp, producer: EventProducer) -> None:
        self.app = app
        self.settings = app.settings
        self.producer = producer
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app.http),
            base_url="http://rag",
            headers={INTERNAL_TOKEN_HEADER: TOKEN},
        )

    async def upload(self, tenant: str, data: bytes, **params: str) -> httpx.Response:
        return await self.http.post("/internal/documents", params={"tenantId": tenant, **params}, content=data)

    async def indexed(self, tenant: str, document_id: str) -> dict[str, Any]:
        async def ended() -> dict[str, Any] | None:
            answer = await self.http.get(f"/internal/documents/{document_id}", params={"tenantId": tenant})
            body: dict[str, Any] = answer.json()
            return body if body["status"] != "pending" else None

        return await eventually(ended, 40) or {}

    async def search(self, tenant: str, query: str, **more: object) -> list[dict[str, Any]]:
        answer = await self.http.post(
            "/internal/documents/search", params={"tenantId": tenant}, json={"query": query, **more}
        )
        assert answer.status_code == 200, answer.text
        items: list[dict[str, Any]] = answer.json()["items"]
        return items

    async def retrieved(self, task: UpgradeTask) -> StageOutput:
        """Sends an upgrade through the stage and gives what it added."""
        await self.producer.publish(
            RETRIEVE, task.upgrade_id, RetrieveTask(**task.model_dump()), subject=task.upgrade_id
        )

        async def handed_over() -> StageOutput | None:
            for data in await self.events(REWRITE):
                if isinstance(data, UpgradeTask) and data.upgrade_id == task.upgrade_id:
                    assert data.itinerary == [Stage.UPGRADER]
                    return data.output_of(Stage.RAG)
            return None

        output = await eventually(handed_over, 20)
        assert output is not None
        return output

    async def events(self, topic: Topic) -> list[Contract]:
        return [decode(topic, r.value, r.headers).data for r in await records_of(self.settings, topic)]


@asynccontextmanager
async def running(settings: RagSettings) -> AsyncIterator[World]:
    app = build_app(settings)
    producer = EventProducer(settings, source="tests")
    started = []
    await producer.start()
    try:
        for component in app.components:
            await component.start()
            started.append(component)
        app.telemetry.health.mark_started()
        world = World(app, producer)
        yield world
        await world.http.aclose()
    finally:
        for component in reversed(started):
            await component.stop(5)
        await producer.stop(1)


@pytest.fixture
async def settings(kafka_servers: str, redis_url: str, scripted_model: ModelServer, tmp_path: Path) -> RagSettings:
    settings = RagSettings(
        _env_file=None,  # type: ignore[call-arg]
        kafka_bootstrap_servers=kafka_servers,
        kafka_enable_idempotence=False,
        kafka_session_timeout_ms=2000,
        redis_url=redis_url,
        data_dir=tmp_path,
        openai_base_url=scripted_model.url,
        vault_key=b64encode(os.urandom(32)).decode(),
        internal_token=TOKEN,
        usage_url="http://127.0.0.1:9",
        rag_sweep_seconds=0.2,
        rag_resubmit_seconds=1,
    )
    await create_topics(settings)
    return settings


@pytest.fixture
async def world(settings: RagSettings) -> AsyncIterator[World]:
    async with running(settings) as world:
        yield world


async def test_from_upload_to_a_citation_and_to_nothing(world: World) -> None:
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


async def test_facts_tell_what_was_indexed_and_used(world: World, scripted_model: ModelServer) -> None:
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
    sent = [text for request in scripted_model.received("embeddings") for text in request.body["input"]]
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


async def test_a_model_that_is_out_delays_documents_and_stops_no_upgrade(
    world: World, scripted_model: ModelServer
) -> None:
    first = (await world.upload("t-out", LEAVE.encode(), filename="a.txt")).json()["id"]
    await world.indexed("t-out", first)
    scripted_model.behaviour.default = Step(status=500, path="embeddings")
    output = await world.retrieved(task_for("t-out", "vacation per annum for staff members"))
    assert [warning.code for warning in output.warnings] == ["retrieval_skipped"]
    second = (await world.upload("t-out", b"Visitors sign in at the front desk.", filename="b.txt")).json()["id"]
    view = await world.http.get(f"/internal/documents/{second}", params={"tenantId": "t-out"})
    assert view.json()["status"] == "pending"
    scripted_model.behaviour.default = Step()
    assert (await world.indexed("t-out", second))["status"] == "indexed"


async def test_a_restart_goes_on_where_it_was(settings: RagSettings, scripted_model: ModelServer) -> None:
    task = task_for("t-restart", "How many days of paid leave per year?")
    async with running(settings) as world:
        document = (await world.upload("t-restart", LEAVE.encode(), filename="a.txt")).json()["id"]
        await world.indexed("t-restart", document)
        before = await world.retrieved(task)
    calls = len(scripted_model.received("embeddings"))
    async with running(settings) as world:
        assert await world.search("t-restart", "paid leave") != []
        task_again = RetrieveTask(**task.model_dump())
        await world.producer.publish(RETRIEVE, task.upgrade_id, task_again)

        async def handed_over_twice() -> bool:
            tasks = [data for data in await world.events(REWRITE) if isinstance(data, UpgradeTask)]
            outputs = [data.output_of(Stage.RAG) for data in tasks if data.upgrade_id == task.upgrade_id]
            return len(outputs) == 2 and all(output == before for output in outputs)

        assert await eventually(handed_over_twice, 20)
    # One more: the query of the search. The upgrade's output was recorded.
    assert len(scripted_model.received("embeddings")) == calls + 1


async def test_readiness_tells_store_index_redis_and_groups(world: World) -> None:
    async def ready() -> bool:
        return (await world.http.get("/health/ready")).status_code == 200

    assert await eventually(ready, 20)
    checks = (await world.http.get("/health/ready")).json()["checks"]
    assert set(checks) == {"process", "store", "index", "redis", "retrieve group", "index group"}


async def test_many_searches_at_once(world: World) -> None:
    document = (await world.upload("t-many", LEAVE.encode(), filename="a.txt")).json()["id"]
    await world.indexed("t-many", document)
    found = await asyncio.gather(*(world.search("t-many", f"paid leave {number % 7}") for number in range(100)))
    assert all(items[0]["documentId"] == document for items in found)
