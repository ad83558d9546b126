"""Embeddings of a document are held before the first one, and the hold ends with what was used."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.rag.search.embedding_holds import GatewayHolds, HoldsUnavailable
from shared.llm.errors import ModelUnavailable
from tests.component.gateway_stand_in import GatewayStandIn
from tests.component.rag_parts import LocalEmbeddings, RagParts, rag_parts

TENANT = "t1"
HANDBOOK = "\n\n".join(f"# Chapter {n}\n\nEmployees are entitled to {n} days of paid leave. " * 8 for n in range(9))


@pytest.fixture
async def gateway() -> AsyncIterator[GatewayStandIn]:
    async with GatewayStandIn().serving() as running:
        yield running


@pytest.fixture
def model() -> LocalEmbeddings:
    return LocalEmbeddings()


@pytest.fixture
async def parts(tmp_path: Path, gateway: GatewayStandIn, model: LocalEmbeddings) -> AsyncIterator[RagParts]:
    holds = GatewayHolds(gateway.url, "token")
    async with rag_parts(tmp_path, model, holds) as running:
        yield running
    await holds.stop(1)


async def test_a_document_takes_a_hold_and_ends_it_with_its_usage(
    parts: RagParts, gateway: GatewayStandIn, model: LocalEmbeddings
) -> None:
    record = await parts.record(await parts.add(TENANT, HANDBOOK))
    assert record["status"] == "indexed"
    [(hold_id, hold)] = gateway.taken.items()
    assert (hold.tenant_id, hold.period, hold.embeddings) == (TENANT, record["period"], record["chunks"])
    assert hold.tokens >= sum(used.tokens_in for used in parts.facts.usage.values())
    spent = gateway.ended[hold_id]
    assert sum(event.embeddings for event in spent) == record["embeddings"] == len(model.texts)
    assert [event.event_id for event in spent] == [fact.event_id for fact in parts.facts.usage.values()]
    assert await parts.store.runs.count({}) == 0


async def test_without_room_the_document_fails_and_nothing_is_embedded(
    parts: RagParts, gateway: GatewayStandIn, model: LocalEmbeddings
) -> None:
    gateway.room = 2
    record = await parts.record(await parts.add(TENANT, HANDBOOK))
    assert record["status"] == "failed"
    assert record["error"] == "The embeddings left of this month's quota do not suffice for this document."
    assert model.texts == []
    assert await parts.store.runs.count({}) == 0
    assert list(parts.facts.indexed_facts.values())[-1].error == record["error"]


async def test_indexing_is_repeated_after_an_outage_of_the_gateway(
    parts: RagParts, gateway: GatewayStandIn, model: LocalEmbeddings
) -> None:
    gateway.out = True
    with pytest.raises(HoldsUnavailable):
        await parts.add(TENANT, HANDBOOK)
    [record] = await parts.store.documents.find({})
    assert record["status"] == "pending"
    assert model.texts == []
    gateway.out = False
    await parts.indexing.index(TENANT, record["_id"])
    assert (await parts.record(record["_id"]))["status"] == "indexed"


async def test_a_hold_that_could_not_be_ended_is_ended_later(parts: RagParts, gateway: GatewayStandIn) -> None:
    document_id = await parts.add(TENANT, HANDBOOK)
    [(first, spent)] = gateway.ended.items()
    gateway.ended.clear()
    # The state after an outage of the gateway at the end of the run.
    await parts.store.runs.insert(
        {
            "_id": first,
            "tenantId": TENANT,
            "documentId": document_id,
            "startedAt": "2026-11-01T00:00:00.000Z",
            "over": True,
            "spent": [event.to_document() for event in spent],
        }
    )
    gateway.out = True
    await parts.sweep.end_holds()
    assert await parts.store.runs.count({}) == 1
    gateway.out = False
    await parts.sweep.end_holds()
    assert gateway.ended[first] == spent
    assert await parts.store.runs.count({}) == 0


async def test_a_run_that_was_killed_ends_with_the_next_and_its_embeddings_cost_nothing_again(
    parts: RagParts, gateway: GatewayStandIn, model: LocalEmbeddings
) -> None:
    document_id = await parts.add(TENANT, HANDBOOK)
    chunks = len(model.texts)
    assert chunks > 2
    await parts.store.documents.update_one({"_id": document_id}, {"$set": {"status": "pending", "generation": ""}})
    run = {"_id": "killed", "tenantId": TENANT, "documentId": document_id, "startedAt": "2026-11-01T00:00:00.000Z"}
    await parts.store.runs.insert(run | {"spent": [{"eventId": "e", "embeddings": 1, "tokens": 5}]})
    gateway.room = 0
    await parts.indexing.index(TENANT, document_id)
    assert (await parts.record(document_id))["status"] == "indexed"
    assert len(model.texts) == chunks
    assert [event.event_id for event in gateway.ended["killed"]] == ["e"]


async def test_a_run_without_a_model_releases_its_hold(
    parts: RagParts, gateway: GatewayStandIn, model: LocalEmbeddings
) -> None:
    model.error = ModelUnavailable
    record = await parts.record(await parts.add(TENANT, HANDBOOK))
    assert record["status"] == "pending"
    assert list(gateway.ended.values()) == [[]]
