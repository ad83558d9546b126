"""Runs a gateway process with real Kafka, Redis and SQLite, and a worker in the test that ends upgrades."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from aiokafka import AIOKafkaConsumer
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from redis.asyncio import Redis

from deploy.local.ports import free_port
from deploy.local.servers import ServerProcess, start_tansu, start_valkey
from services.gateway.http.idempotency import CREATIONS
from services.gateway.identity.api_keys import DEMO_TENANT_ID
from services.gateway.upgrades.accepted_store import ACCEPTED
from shared.contracts.contract import now_utc
from shared.contracts.documents import DocumentHits, DocumentPage, DocumentsExist, DocumentView
from shared.contracts.internal_http import ResultPage
from shared.contracts.problems import PROBLEM_MEDIA_TYPE
from shared.contracts.topics import INBOX_OF, topic_named
from shared.contracts.upgrade_results import UpgradeResult, UpgradeStatus
from shared.contracts.upgrade_tasks import (
    ComponentUsage,
    RetrievedChunk,
    Stage,
    UpgradeTask,
)
from shared.messaging.cloudevents import Envelope, decode
from shared.messaging.connection import make_consumer
from shared.messaging.publish.progress import ProgressLog
from shared.messaging.settings import KafkaSettings
from shared.messaging.topics import create_topics
from shared.privacy.sealing import Vault
from shared.storage.documents import Collection, CollectionSpec
from shared.storage.sqlite import SqliteDatabase
from tests.component.service_process import service_process
from tests.component.usage_stand_in import UsageStandIn
from tests.http_server import served

API_KEY = "pu_component_test_key"
VAULT_KEY = base64.b64encode(b"k" * 32).decode()
TOKEN = "internal-token-of-the-tests"
DEADLINE_SECONDS = 20


def key_hash(idempotency_key: str) -> str:
    """The hash under which the demo tenant's records store an idempotency key."""
    vault = Vault([base64.b64decode(VAULT_KEY)])
    return vault.keyed_hash("idempotency-key", DEMO_TENANT_ID, idempotency_key)


TenantId = Annotated[str, Query(alias="tenantId")]


class Siblings:
    """A stand-in for the internal HTTP of upgrader, rag and usage, in one real server."""

    def __init__(self) -> None:
        self.results: dict[str, UpgradeResult] = {}
        self.documents: dict[str, dict[str, Any]] = {}
        self.documents_exist = True
        self.out = False
        self.refusal: tuple[int, str] | None = None
        self.answers_lost = False
        self.usage = UsageStandIn(lambda: self.results.values())
        self.lookups = 0
        self.erased: list[tuple[str, str]] = []
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["Siblings"]:
        async with served(self._app(), self.port):
            yield self

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def guard(request: Request, call_next: Any) -> Any:
            if self.out:
                return Response(status_code=503)
            assert request.headers["x-internal-token"] == TOKEN
            return await call_next(request)

        @app.post("/internal/upgrades/lookup")
        async def lookup(request: Request) -> Response:
            self.lookups += 1
            ids = (await request.json())["upgradeIds"]
            return _json(ResultPage(items=[self.results[i] for i in ids if i in self.results]).to_json())

        @app.get("/internal/tenants/{tenant_id}/documents/exists")
        async def exist(tenant_id: str) -> Response:
            return _json(DocumentsExist(exist=self.documents_exist).to_json())

        @app.delete("/internal/upgrades/{upgrade_id}")
        async def erase(upgrade_id: str, tenant: TenantId) -> Response:
            self.erased.append((tenant, upgrade_id))
            result = self.results.get(upgrade_id)
            return Response(status_code=204 if result is not None and result.tenant_id == tenant else 404)

        self._add_documents(app)
        self.usage.add_routes(app)
        return app

    def _add_documents(self, app: FastAPI) -> None:
        @app.post("/internal/documents/search")
        async def search(request: Request) -> Response:
            asked = await request.json()
            chunk = RetrievedChunk(document_id="d", chunk_id="c", title="T", score=0.5, text=asked["query"])
            return _json(DocumentHits(items=[chunk]).to_json())

        @app.post("/internal/documents", status_code=202)
        async def submit(request: Request) -> Response:
            if self.refusal:
                status, code = self.refusal
                return JSONResponse({"code": code, "detail": "Not a document."}, status, media_type=PROBLEM_MEDIA_TYPE)
            query = dict(request.query_params)
            stored = self.documents.setdefault(query["documentId"], query | {"createdAt": now_utc()})
            stored["content"] = await request.body()
            if self.answers_lost:
                return Response(status_code=504)
            return _json(self._view(query["documentId"]).to_json(), 202)

        @app.get("/internal/documents")
        async def page(limit: int, tenant: TenantId, before: str | None = None) -> Response:
            mine = [i for i, stored in self.documents.items() if stored["tenantId"] == tenant]
            ids = sorted((i for i in mine if before is None or i < before), reverse=True)[:limit]
            return _json(DocumentPage(items=[self._view(i) for i in ids]).to_json())

        @app.get("/internal/documents/{document_id}")
        async def read(document_id: str, tenant: TenantId) -> Response:
            if self.documents.get(document_id, {}).get("tenantId") != tenant:
                return JSONResponse({"code": "not_found", "detail": "no"}, 404, media_type=PROBLEM_MEDIA_TYPE)
            return _json(self._view(document_id).to_json())

        @app.delete("/internal/documents/{document_id}")
        async def delete(document_id: str, tenant: TenantId) -> Response:
            if self.documents.get(document_id, {}).get("tenantId") != tenant:
                return JSONResponse({"code": "not_found", "detail": "no"}, 404, media_type=PROBLEM_MEDIA_TYPE)
            del self.documents[document_id]
            return Response(status_code=204)

    def _view(self, document_id: str) -> DocumentView:
        stored = self.documents[document_id]
        return DocumentView(
            id=document_id,
            title=stored["title"],
            status="pending",
            chunks=0,
            error=None,
            created_at=stored["createdAt"],
        )


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


def ended(task: UpgradeTask, **changes: Any) -> UpgradeResult:
    """The result of an upgrade whose model repeats the prompt with a prefix."""
    fields: dict[str, Any] = {
        "upgrade_id": task.upgrade_id,
        "tenant_id": task.tenant_id,
        "user_ref": task.user_ref,
        "status": UpgradeStatus.UPGRADED,
        "language": "en",
        "user_prompt": task.user_prompt,
        "upgraded_prompt": f"Better: {task.user_prompt}",
        "reasoning": f"It said {task.user_prompt}",
        "missing_questions": [],
        "confidence": 0.9,
        "model": "offline-test",
        "usage": [
            ComponentUsage(component="upgrader", operation="rewrite", tokens_in=3, cost_nano_usd=5, latency_ms=7)
        ],
        "period": task.period,
        "created_at": task.created_at,
        "completed_at": now_utc(),
        "latency_ms": 12,
    }
    return UpgradeResult(**(fields | changes))


class Worker:
    """Reads all stage inboxes. While `answering`, it ends every upgrade at once; the first end is final."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.received: list[tuple[str, Envelope]] = []
        self.answering = True
        self.replying = True
        self.changes: dict[str, Any] = {}
        self._task: asyncio.Task[None] | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._redis = Redis.from_url(world.valkey.url)
        self._progress = ProgressLog(self._redis)

    async def start(self) -> None:
        self._consumer = make_consumer(self._world.kafka, group_id=None)
        self._consumer.subscribe([topic.name for topic in INBOX_OF.values()])
        await self._consumer.start()
        await self._progress.start()
        self._task = asyncio.create_task(self._read())

    async def stop(self) -> None:
        assert self._task
        assert self._consumer
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._consumer.stop()
        await self._progress.stop(1)

    async def close(self) -> None:
        await self._redis.aclose()

    async def _read(self) -> None:
        assert self._consumer
        async for record in self._consumer:
            envelope = decode(topic_named(record.topic), record.value, record.headers)
            self.received.append((record.topic, envelope))
            if self.answering:
                await self.answer(envelope)

    async def stage(self, envelope: Envelope, stage: Stage) -> None:
        task = _task_of(envelope)
        await self._progress.stage(task, stage, "started")
        await self._progress.stage(task, stage, "finished", 5)

    async def answer(self, envelope: Envelope) -> UpgradeResult:
        """Ends the upgrade as the upgrader would."""
        task = _task_of(envelope)
        result = self._world.siblings.results.setdefault(task.upgrade_id, ended(task, **self.changes))
        if self.replying:
            await self._progress.completed(task, result)
        return result

    def tasks(self, upgrade_id: str) -> list[tuple[str, UpgradeTask]]:
        """The messages of one upgrade, each with its topic."""
        return [(name, _task_of(e)) for name, e in self.received if _task_of(e).upgrade_id == upgrade_id]

    def last_envelope(self, upgrade_id: str) -> Envelope | None:
        return next((e for _, e in reversed(self.received) if _task_of(e).upgrade_id == upgrade_id), None)


def _task_of(envelope: Envelope) -> UpgradeTask:
    assert isinstance(envelope.data, UpgradeTask)
    return envelope.data


class World:
    """A gateway with the servers that it needs."""

    def __init__(self, tansu: ServerProcess, valkey: ServerProcess, siblings: Siblings, data_dir: Path) -> None:
        self.tansu = tansu
        self.valkey = valkey
        self.siblings = siblings
        self.data_dir = data_dir
        self.kafka = KafkaSettings(_env_file=None, kafka_bootstrap_servers=tansu.url, kafka_enable_idempotence=False)
        self.worker = Worker(self)
        self.gateway = self.new_gateway()
        self.second = self.gateway

    def new_gateway(self, **environment: str) -> ServerProcess:
        """A replica of the gateway on the same store, not started."""
        variables = {
            "KAFKA_BOOTSTRAP_SERVERS": self.tansu.url,
            "KAFKA_ENABLE_IDEMPOTENCE": "false",
            "REDIS_URL": self.valkey.url,
            "VAULT_KEY": VAULT_KEY,
            "INTERNAL_TOKEN": TOKEN,
            "DEMO_API_KEY": API_KEY,
            "RATE_LIMIT_PER_MINUTE": "100000",
            "UPGRADER_URL": self.siblings.url,
            "SUMMARIZER_URL": self.siblings.url,
            "RAG_URL": self.siblings.url,
            "USAGE_URL": self.siblings.url,
            "UPGRADE_DEADLINE_SECONDS": str(DEADLINE_SECONDS),
            "SHUTDOWN_GRACE_SECONDS": "8",
            "CORS_ALLOWED_ORIGINS": "https://app.example.org",
        }
        return service_process("gateway", variables | environment, self.data_dir)

    def client(self, gateway: ServerProcess | None = None, **options: Any) -> httpx.AsyncClient:
        """An authenticated client of a gateway."""
        url = (gateway or self.gateway).url
        return httpx.AsyncClient(base_url=url, headers={"X-API-Key": API_KEY}, timeout=65, **options)

    @contextlib.asynccontextmanager
    async def collection(self, spec: CollectionSpec) -> AsyncIterator[Collection]:
        """One of the gateway's collections, opened beside the running gateways."""
        database = SqliteDatabase(self.data_dir / "gateway.sqlite3")
        collection = database.collection(spec)
        await database.start()
        try:
            yield collection
        finally:
            await database.stop(1)

    async def records(self) -> list[dict[str, Any]]:
        """All accepted records of the gateway."""
        async with self.collection(ACCEPTED) as collection:
            return await collection.find({}, sort=[("_id", 1)], limit=10_000)

    async def claims_of(self, tenant_id: str) -> list[dict[str, Any]]:
        """The gateway's records of a tenant's idempotency keys for documents, keys and members."""
        async with self.collection(CREATIONS) as collection:
            claims = await collection.find({}, limit=10_000)
        return [claim for claim in claims if claim["tenantId"].startswith(tenant_id)]

    async def change_record(self, upgrade_id: str, **fields: Any) -> None:
        async with self.collection(ACCEPTED) as collection:
            assert await collection.update_one({"_id": upgrade_id}, {"$set": fields}) == 1

    async def files_hold(self, texts: Iterable[str]) -> list[str]:
        """Returns the texts that occur in any file of the data folder, logs included."""
        content = b"".join(path.read_bytes() for path in self.data_dir.rglob("*") if path.is_file())
        return [text for text in texts if text.encode() in content]

    async def new_broker(self) -> None:
        """Replaces the broker by one with an empty log and a new cluster id on the same port."""
        await self.worker.stop()
        await self.tansu.kill()
        await self.new_broker_after_kill()

    async def new_broker_after_kill(self) -> None:
        """Starts the new broker of `new_broker`, for tests that act while no broker runs."""
        self.tansu = await start_tansu(self.tansu.port)
        await create_topics(self.kafka)
        await self.worker.start()


@contextlib.asynccontextmanager
async def world_in(data_dir: Path, worker: "type[Worker] | None" = None) -> AsyncIterator[World]:
    """A running world in `data_dir`; `worker` is the class of the worker that ends upgrades."""
    siblings = Siblings()
    async with siblings.serving(), await start_valkey() as valkey:
        world = World(await start_tansu(), valkey, siblings, data_dir)
        if worker is not None:
            await world.worker.close()
            world.worker = worker(world)
        try:
            await create_topics(world.kafka)
            await world.worker.start()
            await world.gateway.start()
            async with world.client() as client:
                # The first request waits for 3 s, because the gateway does not know this Redis process yet.
                assert (await client.get("/api/quota")).status_code == 200
            yield world
        finally:
            await world.gateway.stop()
            await world.worker.stop()
            await world.worker.close()
            await world.tansu.stop()


@pytest.fixture(scope="module", name="world")
async def module_world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A world for all tests of a module. Import it to use it."""
    async with world_in(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture(scope="module", name="client")
async def module_client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the module's gateway. Import it to use it."""
    async with world.client() as connected:
        yield connected
