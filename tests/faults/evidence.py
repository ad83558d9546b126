"""Collects the evidence of a run with faults: answers, stored records, and the requests that the model received."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from services.usage.counting.batch_registry import StoredBatchRegistry
from shared.contracts.contract import derived_id
from shared.contracts.topics import topic_named
from shared.storage.documents import Collection, CollectionSpec, Database
from shared.storage.opening import open_database
from shared.storage.settings import StorageSettings
from tests.model_server import Received
from tests.running_stack import RunningStack

PAGE = 500
OUTPUTS = {"summarizer": "outputs", "rag": "outputs", "upgrader": "results"}


@dataclass(frozen=True)
class ModelCall:
    """One model request. `stage` is the caller, `at` the time in epoch seconds."""

    marker: str
    stage: str
    at: float


@dataclass
class Evidence:
    """Everything that the checker reads. A marker is a word in the prompt that identifies an upgrade."""

    upgrade_ids: dict[str, str]
    ends_seen: dict[str, set[tuple[str, str]]]
    records: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    uncounted: list[str] = field(default_factory=list)
    counters: list[dict[str, Any]] = field(default_factory=list)
    calls: list[ModelCall] = field(default_factory=list)

    def owed_events(self) -> dict[str, str]:
        """The ids of all events that the ledger must have, each with a description of its origin."""
        owed = {
            fact["eventId"]: f"{service}'s {fact['topic']} of {record['_id']}"
            for service, records in self.records.items()
            for record in records.values()
            for fact in record.get("facts", ())
            if "usage" in topic_named(fact["topic"]).consumers
        }
        ends = {derived_id(i, "completed"): f"the end of {i}" for i in self.upgrade_ids.values()}
        return {**ends, **owed}


def store_of(stack: RunningStack, service: str) -> Database:
    """The store of one service of a running stack, not started."""
    endpoints = stack.endpoints()
    directory = stack.data_dir / "cluster" if stack.cluster else stack.data_dir
    settings = StorageSettings.model_validate(
        {"data_dir": directory, "mongodb_url": endpoints["mongodb"], "redis_url": endpoints["redis"]}
    )
    return open_database(settings, service)


@asynccontextmanager
async def opened(stack: RunningStack, service: str, *names: str) -> AsyncIterator[list[Collection]]:
    """Opens collections of one service of a running stack."""
    database = store_of(stack, service)
    collections = [database.collection(CollectionSpec(name=name)) for name in names]
    await database.start()
    try:
        yield collections
    finally:
        await database.stop(5.0)


async def read_all(collection: Collection) -> list[dict[str, Any]]:
    """Returns all documents of a collection."""
    documents: list[dict[str, Any]] = []
    after = ""
    while True:
        page = await collection.find({"_id": {"$gt": after}}, sort=[("_id", 1)], limit=PAGE)
        documents += page
        if len(page) < PAGE:
            return documents
        after = page[-1]["_id"]


async def read_stores(stack: RunningStack, evidence: Evidence) -> Evidence:
    """Adds the records of the stages, the ledger and the counters to the evidence."""
    for service, name in OUTPUTS.items():
        async with opened(stack, service, name) as (outputs,):
            evidence.records[service] = {record["_id"]: record for record in await read_all(outputs)}
    usage = store_of(stack, "usage")
    registry = StoredBatchRegistry(usage)
    events, counters = (usage.collection(CollectionSpec(name=name)) for name in ("usage_events", "tenant_counters"))
    await usage.start()
    try:
        evidence.ledger, evidence.counters = await read_all(events), await read_all(counters)
        evidence.uncounted = [event["_id"] for event in await registry.uncounted_among(evidence.ledger)]
    finally:
        await usage.stop(5.0)
    return evidence


def calls_of(requests: list[Received], markers: list[str]) -> list[ModelCall]:
    """Returns the model calls of marked upgrades."""
    calls = []
    for request in requests:
        text = str(request.body)
        stage = "rag" if request.path == "embeddings" else _chat_stage(request.body)
        calls += [ModelCall(marker, stage, request.at) for marker in markers if marker in text]
    return calls


def _chat_stage(body: dict[str, Any]) -> str:
    name = body.get("response_format", {}).get("json_schema", {}).get("name", "")
    return "summarizer" if name == "conversation_summary" else "upgrader"
