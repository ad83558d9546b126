"""Tests of the usage service as a process that reads from a broker, is killed and restarted."""

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest

from deploy.local.ports import free_port
from services.usage.counting.increments import increments_of
from services.usage.counting.ledger_event import LedgerEvent, of_usage
from shared.contracts.contract import new_id, now_utc
from shared.contracts.internal_http import INTERNAL_TOKEN_HEADER
from shared.contracts.topics import USAGE_RECORDED, all_topics
from shared.contracts.usage import UsageRecorded
from shared.messaging.publish.producer import EventProducer
from shared.messaging.settings import KafkaSettings
from shared.messaging.topics import create_topics
from tests.conftest import eventually

TOKEN = "inside"
ROOT = Path(__file__).parents[2]
PERIOD = now_utc().strftime("%Y-%m")


class UsageProcess:
    def __init__(self, process: asyncio.subprocess.Process, http: httpx.AsyncClient) -> None:
        self.process = process
        self.http = http

    async def is_ready(self) -> bool:
        assert self.process.returncode is None, "the service ended"
        with suppress(httpx.HTTPError):
            return (await self.http.get("/health/ready")).status_code == 200
        return False

    async def missing(self, event_ids: list[str]) -> list[str]:
        answer = await self.http.post("/internal/events/missing", json={"eventIds": event_ids})
        missing: list[str] = answer.json()["eventIds"]
        return missing


def environment(
    kafka: str,
    data_dir: Path,
    port: int,
    token: str = TOKEN,
    batch_events: int = 200,
    session_timeout_ms: int = 2_000,
) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "KAFKA_BOOTSTRAP_SERVERS": kafka,
        "KAFKA_ENABLE_IDEMPOTENCE": "false",
        "KAFKA_INSTANCE_NAME": new_id(),
        "KAFKA_SESSION_TIMEOUT_MS": str(session_timeout_ms),
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "DATA_DIR": str(data_dir),
        "INTERNAL_TOKEN": token,
        "USAGE_PORT": str(port),
        "USAGE_BATCH_EVENTS": str(batch_events),
        "LOG_LEVEL": "WARNING",
    }


@asynccontextmanager
async def usage_process(
    kafka: str, data_dir: Path, token: str = TOKEN, batch_events: int = 200, session_timeout_ms: int = 2_000
) -> AsyncIterator[UsageProcess]:
    port = free_port()
    variables = environment(kafka, data_dir, port, token, batch_events, session_timeout_ms)
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.usage", cwd=ROOT, env=variables)
    headers = {INTERNAL_TOKEN_HEADER: token}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers) as http:
        try:
            yield UsageProcess(process, http)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def reconciled(kafka: str, data_dir: Path) -> tuple[int | None, dict[str, object]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.usage.reconciling.command", "--json",
        cwd=ROOT, env=environment(kafka, data_dir, 1), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, json.loads(output)


@pytest.fixture
async def producer(kafka_servers: str) -> AsyncIterator[EventProducer]:
    settings = KafkaSettings(kafka_bootstrap_servers=kafka_servers, kafka_enable_idempotence=False)
    await create_topics(settings, all_topics())
    producer = EventProducer(settings, source="test")
    await producer.start()
    yield producer
    await producer.stop(5)


def events_of(tenant_id: str, count: int) -> list[UsageRecorded]:
    return [
        UsageRecorded(
            event_id=new_id(),
            tenant_id=tenant_id,
            user_ref=f"u_{number % 7}",
            component="upgrader",
            operation="rewrite",
            tokens_in=number,
            tokens_out=3,
            embeddings=number % 2,
            cost_nano_usd=number * 11,
            latency_ms=number,
            period=PERIOD,
            occurred_at=now_utc(),
        )
        for number in range(count)
    ]


async def publish(producer: EventProducer, events: list[UsageRecorded]) -> None:
    for at in range(0, len(events), 200):
        await asyncio.gather(
            *(
                producer.publish(USAGE_RECORDED, event.tenant_id, event, event_id=event.event_id)
                for event in events[at : at + 200]
            )
        )


async def test_killed_under_load_with_every_event_twice(
    kafka_servers: str, producer: EventProducer, tmp_path: Path
) -> None:
    tenant_id = new_id()
    events = events_of(tenant_id, 3000)
    twice = random.Random(7).sample([*events, *events], 6000)
    publishing = asyncio.create_task(publish(producer, twice))
    ids = [event.event_id for event in events]
    for already_counted in (1, 1200):
        async with usage_process(kafka_servers, tmp_path) as usage:
            await eventually(usage.is_ready, 40)

            async def progressed(usage: UsageProcess = usage, target: int = already_counted) -> bool:
                return len(await usage.missing(ids)) <= len(ids) - target

            await eventually(progressed, 40)
            usage.process.kill()
    await publishing
    async with usage_process(kafka_servers, tmp_path) as usage:
        await eventually(usage.is_ready, 40)

        async def all_counted() -> bool:
            return await usage.missing(ids) == []

        await eventually(all_counted, 60)
        counters = (await usage.http.get(f"/internal/tenants/{tenant_id}/counters?period={PERIOD}")).json()
        expected = increments_of(ledger_events(events)).counters.popitem()[1]
        assert counters["tokens"] == expected["tokens"]
        assert counters["embeddings"] == expected["embeddings"]
        assert counters["costNanoUsd"] == expected["costNanoUsd"]
        metrics = (await usage.http.get("/metrics")).text
        assert 'usage_events_total{outcome="counted"}' in metrics
        usage.process.terminate()
        assert await asyncio.wait_for(usage.process.wait(), 30) == 0
    code, found = await reconciled(kafka_servers, tmp_path)
    # There is no Redis in this test, and the command says so.
    assert (code, found["clean"], found["uncounted"]) == (3, True, 0)
    assert isinstance(found["unreached"], dict)
    assert set(found["unreached"]) == {"holds"}
    # Other tests share the broker, and the ledger reads all tenants: theirs may be there too, ours exactly once.
    assert isinstance(found["events"], int)
    assert found["events"] >= 3000


def ledger_events(events: list[UsageRecorded]) -> list[LedgerEvent]:
    return [of_usage(event.event_id, event) for event in events]
