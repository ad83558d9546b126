"""What the stages do when an upgrade is erased: content goes, the record of what was used stays and is told. On real
SQLite."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI

from services.rag.documents.routes import erasure_routes as rag_routes
from services.rag.store import RagStore
from services.summarizer.summary_cache import SUMMARIES, StoredSummaryCache
from services.summarizer.summary_cache import erasure_routes as summarizer_routes
from services.upgrader.results import RESULTS, Results, completed_fact, result_routes
from shared.contracts.contract import now_utc
from shared.contracts.quota import SpentEvent, SpentEvents
from shared.contracts.topics import COMPLETED
from shared.contracts.upgrade_results import UpgradeResult
from shared.contracts.upgrade_tasks import ComponentUsage, RetrievedChunk, SealedText, Stage, StageOutput, Summary
from shared.messaging.publish.outbox import FactOutbox, outbox_collection
from shared.messaging.publish.producer import EventProducer
from shared.messaging.settings import KafkaSettings
from shared.service.ledger_client import LedgerClient
from shared.service.recorded_stage import expire_outputs, spent_route, usage_facts
from shared.storage.documents import Collection
from shared.storage.sqlite import SqliteDatabase
from tests.component.gateway_world import ended
from tests.unit.upgrade_fixtures import make_task

SEALED = SealedText(key_id="k", nonce="n", ciphertext="giraffe")
USED = ComponentUsage(component="summarizer", operation="summarize", tokens_in=7)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    opened = SqliteDatabase(tmp_path / "stage.sqlite3")
    yield opened
    await opened.stop(1)


@pytest.fixture
async def ledger() -> AsyncIterator[LedgerClient]:
    client = LedgerClient("http://127.0.0.1:1", "token")
    yield client
    await client.stop(1)


def outbox(records: Collection, ledger: LedgerClient) -> FactOutbox:
    kafka = KafkaSettings(_env_file=None, kafka_bootstrap_servers="127.0.0.1:1")
    return FactOutbox(records, EventProducer(kafka, source="test"), ledger)


def client_of(router: APIRouter) -> httpx.AsyncClient:
    app = FastAPI()
    app.include_router(router)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://stage")


async def erase(router: APIRouter, upgrade_id: str, tenant_id: str) -> int:
    async with client_of(router) as client:
        answer = await client.delete(f"/internal/upgrades/{upgrade_id}", params={"tenantId": tenant_id})
        return answer.status_code


async def record_output(outputs: FactOutbox, task: Any, output: StageOutput) -> None:
    facts = usage_facts(task, output)
    await outputs.record(task.upgrade_id, task.tenant_id, output.to_document(), facts)


async def test_the_summarizer(database: SqliteDatabase, ledger: LedgerClient) -> None:
    outputs = outbox(database.collection(outbox_collection("outputs")), ledger)
    cache = StoredSummaryCache(database.collection(SUMMARIES), timedelta(days=7))
    await database.start()
    router, task = summarizer_routes(cache, outputs), make_task()
    summary = Summary(goal="a purple giraffe")
    await record_output(outputs, task, StageOutput(stage=Stage.SUMMARIZER, summary=summary, usage=[USED]))
    await cache.put(task.tenant_id, "mine", summary, task.upgrade_id)
    await cache.put(task.tenant_id, "other", summary, "another upgrade")

    assert await erase(router, task.upgrade_id, "another tenant") == 404
    assert await cache.find(task.tenant_id, ["mine"]) == {"mine": summary}
    assert await erase(router, task.upgrade_id, task.tenant_id) == 204
    assert await cache.find(task.tenant_id, ["mine", "other"]) == {"other": summary}
    record = await outputs.find(task.upgrade_id)
    assert record is not None
    assert "giraffe" not in json.dumps(record)
    assert StageOutput.model_validate(record["content"]).usage == [USED]
    assert len(record["facts"]) == 1

    assert await expire_outputs(outputs, now_utc() + timedelta(hours=1)) == 0  # its usage is not counted yet
    await outputs.records.update_one({"_id": task.upgrade_id}, {"$unset": {"unsettledSince": ""}})
    assert await expire_outputs(outputs, now_utc() - timedelta(hours=1)) == 0
    assert await expire_outputs(outputs, now_utc() + timedelta(hours=1)) == 1
    assert await erase(router, task.upgrade_id, task.tenant_id) == 404


async def test_rag(database: SqliteDatabase, ledger: LedgerClient) -> None:
    outputs = outbox(database.collection(outbox_collection("outputs")), ledger)
    store = RagStore(database)
    await database.start()
    router, task = rag_routes(store, outputs), make_task()
    chunk = RetrievedChunk(document_id="d", chunk_id="c", title="giraffe", score=0.5, text="giraffe")
    output = StageOutput(stage=Stage.RAG, chunks=[chunk], sealed_pii=SEALED, usage=[USED])
    await record_output(outputs, task, output)
    entry = {"tenantId": task.tenant_id, "documentId": "", "createdAt": "2026"}
    await store.embeddings.insert({"_id": "mine", "upgradeId": task.upgrade_id, **entry})
    await store.embeddings.insert({"_id": "a document's", **entry})

    assert await erase(router, task.upgrade_id, "another tenant") == 404
    assert await erase(router, task.upgrade_id, task.tenant_id) == 204
    record = await outputs.find(task.upgrade_id)
    assert "giraffe" not in json.dumps(record)
    assert [found["_id"] for found in await store.embeddings.find({})] == ["a document's"]


async def test_the_upgrader(database: SqliteDatabase, ledger: LedgerClient) -> None:
    records = outbox(database.collection(RESULTS), ledger)
    results = Results(records)
    await database.start()
    router, task = result_routes(results), make_task(user_prompt="a purple giraffe")
    chunk = RetrievedChunk(document_id="d", chunk_id="c", title="giraffe", score=0.5, text="giraffe")
    result = ended(task, citations=[chunk], sealed_pii=[SEALED], missing_questions=["which giraffe?"])
    await results.end(task, result)

    assert await erase(router, task.upgrade_id, "another tenant") == 404
    assert await erase(router, task.upgrade_id, task.tenant_id) == 204
    record = await records.find(task.upgrade_id)
    assert record is not None
    assert "giraffe" not in json.dumps(record)
    kept = UpgradeResult.model_validate(record["content"])
    assert (kept.status, kept.usage, kept.period) == (result.status, result.usage, result.period)
    # What it owes the world is the same event, without what was said.
    [fact] = [fact for fact in record["facts"] if fact["topic"] == COMPLETED.name]
    _, completed = completed_fact(result)
    assert fact["data"]["usage"] == completed.usage.to_document()
    assert COMPLETED.model is not None
    COMPLETED.model.model_validate(fact["data"])


async def test_what_a_stage_has_spent_is_told_before_and_after_the_erasure(
    database: SqliteDatabase, ledger: LedgerClient
) -> None:
    outputs = outbox(database.collection(outbox_collection("outputs")), ledger)
    store = RagStore(database)
    await database.start()
    task = make_task()
    searched = ComponentUsage(component="rag", operation="search", embeddings=2)
    await record_output(outputs, task, StageOutput(stage=Stage.RAG, usage=[USED, searched]))

    async def told(upgrade_id: str, tenant_id: str) -> list[SpentEvent]:
        async with client_of(spent_route(outputs)) as client:
            answer = await client.get(f"/internal/upgrades/{upgrade_id}/spent", params={"tenantId": tenant_id})
        assert answer.status_code == 200
        return SpentEvents.model_validate_json(answer.content).events

    record = await outputs.find(task.upgrade_id)
    assert record is not None
    ids = [fact["eventId"] for fact in record["facts"]]
    expected = [SpentEvent(event_id=ids[0], tokens=7), SpentEvent(event_id=ids[1], embeddings=2)]
    assert await told(task.upgrade_id, task.tenant_id) == expected
    assert await erase(rag_routes(store, outputs), task.upgrade_id, task.tenant_id) == 204
    assert await told(task.upgrade_id, task.tenant_id) == expected
    assert await told(task.upgrade_id, "another tenant") == []
    assert await told("another upgrade", task.tenant_id) == []
