"""Measures how far the usage service lags behind 5,000 events per second for a minute."""

import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from aiokafka import AIOKafkaProducer

from benchmarks.backends import Broker, running
from benchmarks.pairs import Measured, Row
from benchmarks.side_process import side
from shared.contracts.contract import new_id, period_of
from shared.contracts.topics import USAGE_RECORDED
from shared.contracts.usage import UsageRecorded
from shared.messaging.cloudevents import encode
from shared.messaging.connection import connection_options
from shared.messaging.topics import create_topics
from tests.component.test_usage_service import UsageProcess, usage_process
from tests.conftest import eventually

RATE = 5_000
SECONDS = 60
_TICK_SECONDS = 0.05
_PREPARED_EVENTS = 20_000
_MAX_LAG_SECONDS = 5.0
_SESSION_MS = 6_000  # the minimum of Apache Kafka
_DRAIN_SECONDS = 120.0
LAG = Row(
    "usage-lag",
    "events/s",
    f"A is the number of events counted within {SECONDS} s of the first publication, B the number published in that "
    f"time at {RATE:,} a second: events of ten tenants with a hundred users each, for one usage process on SQLite with "
    "the default batches of 2,000. The publisher and the broker share the cores with it. Met also requires that "
    f"the highest lag of the last 20 s is below {_MAX_LAG_SECONDS:g} s of events.",
    goal=0.95,
)
ROWS = (LAG,)


async def measure(kind: str, chosen: Sequence[Row]) -> list[Measured]:
    """Measures one run of a minute."""
    with tempfile.TemporaryDirectory(prefix="bench-lag-") as folder:
        async with (
            running(kind) as broker,
            side("benchmarks.usage_lag:Publisher", kind=broker.kind, url=broker.url) as publisher,
        ):
            await create_topics(broker.settings())
            async with usage_process(
                broker.url, Path(folder), batch_events=2_000, session_timeout_ms=_SESSION_MS
            ) as usage:
                await eventually(usage.is_ready, 60)
                idle_cpu = await _metric(usage, "process_cpu_seconds_total")
                publishing = asyncio.create_task(publisher.call("publish", within=4 * SECONDS))
                lags = await _watch(usage, publishing)
                published = await publishing
                counted = await _counted(usage)
                began = time.perf_counter()

                async def all_counted() -> bool:
                    return await _counted(usage) >= float(published["events"])

                await eventually(all_counted, _DRAIN_SECONDS)
                drained = time.perf_counter() - began
                cpu = (await _metric(usage, "process_cpu_seconds_total") - idle_cpu) / published["events"]
    last = max(lags[-20:])
    absolute = (
        f"published {published['events'] / published['seconds']:,.0f}/s for {published['seconds']:.0f} s; lag at most "
        f"{max(lags):,.0f} events, {last:,.0f} in the last 20 s; all counted {drained:.1f} s after the last; "
        f"{cpu * 1e6:.0f} µs CPU of the usage process per event"
    )
    within_limit = last < _MAX_LAG_SECONDS * RATE
    return [Measured(row.on(kind), row, (counted / published["events"],), absolute, within_limit) for row in chosen]


async def _watch(usage: UsageProcess, publishing: asyncio.Task[object]) -> list[float]:
    """Samples the lag behind the planned rate once a second, until everything is published."""
    lags: list[float] = []
    began = time.perf_counter()
    while not publishing.done():
        await asyncio.wait([publishing], timeout=1.0)
        planned = min(RATE * SECONDS, RATE * (time.perf_counter() - began))
        lags.append(max(0.0, planned - await _counted(usage)))
    return lags


async def _counted(usage: UsageProcess) -> float:
    return await _metric(usage, 'usage_events_total{outcome="counted"}')


async def _metric(usage: UsageProcess, name: str) -> float:
    for line in (await usage.http.get("/metrics")).text.splitlines():
        if line.startswith(name + " "):
            return float(line.rpartition(" ")[2])
    return 0.0


class Publisher:
    """Publishes prepared events at an even rate, each with a new id."""

    def __init__(self, kind: str, url: str) -> None:
        self._broker = Broker(kind, url)
        chance = random.Random(3)
        now = datetime.now(UTC)
        self._events = [
            UsageRecorded(
                event_id=new_id(),
                tenant_id=f"tenant-{chance.randrange(10)}",
                user_ref=f"u_{chance.randrange(100):032d}",
                upgrade_id=new_id(),
                component=chance.choice(("summarizer", "rag", "upgrader")),
                operation="work",
                tokens_in=chance.randint(50, 2000),
                tokens_out=chance.randint(10, 500),
                cost_nano_usd=chance.randint(0, 10**6),
                latency_ms=int(chance.lognormvariate(6, 1)),
                model="offline-1",
                period=period_of(now),
                occurred_at=now,
            )
            for _ in range(_PREPARED_EVENTS)
        ]

    async def start(self) -> None:
        settings = self._broker.settings()
        self._producer = AIOKafkaProducer(**connection_options(settings), acks="all", linger_ms=5)
        await self._producer.start()

    async def close(self) -> None:
        await self._producer.stop()

    async def publish(self) -> dict[str, float]:
        """Publishes all events of the run; returns their number and the seconds it took."""
        encoded = [
            (event.tenant_id.encode(), *encode(USAGE_RECORDED, event, source="bench", event_id=event.event_id))
            for event in self._events
        ]
        began, sent = time.perf_counter(), 0
        last: asyncio.Future[object] | None = None
        while sent < RATE * SECONDS:
            target = min(RATE * SECONDS, round((time.perf_counter() - began + _TICK_SECONDS) * RATE))
            while sent < target:
                key, value, headers = encoded[sent % _PREPARED_EVENTS]
                own = [(name, f"e-{sent}".encode() if name == "ce_id" else text) for name, text in headers]
                last = await self._producer.send(USAGE_RECORDED.name, value, key=key, headers=own)
                sent += 1
            await asyncio.sleep(max(0.0, sent / RATE - (time.perf_counter() - began)))
        if last is not None:
            await last
        await self._producer.flush()
        return {"events": sent, "seconds": time.perf_counter() - began}
