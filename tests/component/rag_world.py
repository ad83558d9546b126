"""Runs the rag service in a test, with a broker, Redis and a model server."""

import os
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from services.rag.app import build_app
from services.rag.settings import RagSettings
from shared.contracts.contract import Contract
from shared.contracts.internal_http import INTERNAL_TOKEN_HEADER
from shared.contracts.topics import RETRIEVE, REWRITE, Topic
from shared.contracts.upgrade_tasks import RetrieveTask, Stage, StageOutput, UpgradeTask
from shared.messaging.cloudevents import decode
from shared.messaging.publish.producer import EventProducer
from shared.service.app import ServiceApp
from tests.component.gateway_stand_in import GatewayStandIn
from tests.component.messaging_setup import records_of
from tests.conftest import eventually

TOKEN = "internal-token-of-the-test"
LEAVE = "Employees are entitled to 25 days of paid leave per calendar year. Ask jane.doe@example.org."


class World:
    """A running rag, its HTTP and the broker around it."""

    def __init__(
        self, app: ServiceApp, settings: RagSettings, producer: EventProducer, gateway: GatewayStandIn
    ) -> None:
        self.app = app
        self.gateway = gateway
        self.settings = settings
        self.producer = producer
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app.http),
            base_url="http://rag",
            headers={INTERNAL_TOKEN_HEADER: TOKEN},
        )

    async def ready(self) -> bool:
        return (await self.http.get("/health/ready")).status_code == 200

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
        """Sends an upgrade through the stage and returns its output."""
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
    async with GatewayStandIn().serving() as gateway, _running(settings, gateway) as world:
        yield world


@asynccontextmanager
async def _running(settings: RagSettings, gateway: GatewayStandIn) -> AsyncIterator[World]:
    app = build_app(settings.model_copy(update={"gateway_url": gateway.url}))
    producer = EventProducer(settings, source="tests")
    started = []
    await producer.start()
    try:
        for component in app.components:
            await component.start()
            started.append(component)
        app.telemetry.health.mark_started()
        world = World(app, settings, producer, gateway)
        # A client that is closed while it joins its group leaves a connection behind.
        await eventually(world.ready, 30)
        yield world
        await world.http.aclose()
    finally:
        for component in reversed(started):
            await component.stop(5)
        await producer.stop(1)


def rag_settings(kafka: str, redis: str, model_url: str, data_dir: Path) -> RagSettings:
    """Settings of a rag that sweeps often. Without a usage service, events are published and stay unsettled."""
    return RagSettings(
        _env_file=None,
        kafka_bootstrap_servers=kafka,
        kafka_enable_idempotence=False,
        kafka_session_timeout_ms=2000,
        redis_url=SecretStr(redis),
        data_dir=data_dir,
        openai_base_url=model_url,
        vault_key=SecretStr(b64encode(os.urandom(32)).decode()),
        internal_token=SecretStr(TOKEN),
        usage_url="http://127.0.0.1:9",
        rag_sweep_seconds=0.2,
        rag_resubmit_seconds=1,
    )
