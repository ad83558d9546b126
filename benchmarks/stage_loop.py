"""Measures the overhead of the stage runner per message, compared with a bare consumer loop."""

import asyncio
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from aiohttp import web

from benchmarks.backends import Broker, running
from benchmarks.pairs import Measured, Row, medians, paired, ratios
from benchmarks.side_process import side
from benchmarks.upgrade_messages import preload
from shared.contracts.topics import REWRITE
from shared.contracts.upgrade_tasks import GivenUp, RewriteTask
from shared.messaging.cloudevents import Envelope
from shared.messaging.connection import group_options, make_consumer
from shared.messaging.consume.group_reader import FETCH_BYTES
from shared.messaging.consume.stage_runner import StageRunner
from shared.messaging.publish.producer import EventProducer
from shared.service.settings import ObservabilitySettings
from shared.service.telemetry import setup

MESSAGES = 40_000
_SIDES = (
    "A is the stage runner with a handler that does nothing (metrics on, as always); B is aiokafka's `getmany`, "
    "validation by the same pydantic model and a commit per batch. Both read the same preloaded topic of 1 KB messages "
    "with CloudEvents headers, from the first message to the last, each in one process"
)
UNTRACED = Row("stage-loop", "messages/s", f"{_SIDES}. Tracing is off.", goal=0.5)
UNSAMPLED = Row("stage-loop-unsampled", "messages/s", f"{_SIDES}. Tracing is on in A; the messages are not sampled.")
SAMPLED = Row(
    "stage-loop-sampled", "messages/s", f"{_SIDES}. Tracing is on in A, and every message's span is exported (OTLP)."
)
ROWS = (UNTRACED, UNSAMPLED, SAMPLED)


async def measure(kind: str, chosen: Sequence[Row]) -> list[Measured]:
    """Measures the chosen rows on one kind of broker."""
    results = []
    async with running(kind) as broker, side("benchmarks.stage_loop:Collector") as collector:
        options: dict[str, Any] = {"kind": broker.kind, "url": broker.url}
        traces = f"http://127.0.0.1:{await collector.call('port')}"
        async with side("benchmarks.stage_loop:RawLoop", **options) as raw:
            for row in chosen:
                topic = (await preload(broker, f"{row.name}.v1", MESSAGES, sampled=row is SAMPLED)).name
                async with side(
                    "benchmarks.stage_loop:RunnerLoop", **options, traces=None if row is UNTRACED else traces
                ) as ours:
                    pairs = await paired(
                        partial(ours.call, "consume", topic=topic),
                        partial(raw.call, "consume", topic=topic, messages=MESSAGES),
                    )
                absolute = medians(pairs, "{per_second:,.0f}/s, {per_cpu_second:,.0f}/CPU s", "; ")
                results.append(Measured(row.on(kind), row, ratios(pairs, "per_second"), absolute))
    return results


class Stopwatch:
    """Measures wall and CPU time from the first message to the last of a run."""

    def __init__(self, messages: int) -> None:
        self._messages = messages
        self._left = messages
        self._started: tuple[float, float] | None = None
        self.numbers: asyncio.Future[dict[str, float]] = asyncio.get_running_loop().create_future()

    def start(self) -> tuple[float, float]:
        """Starts the watch unless it is running; returns wall and CPU time of the start, in seconds."""
        if self._started is None:
            self._started = time.perf_counter(), time.process_time()
        return self._started

    def count(self, messages: int = 1) -> None:
        """Counts handled messages, and starts the watch if needed. `numbers` resolves at the last message."""
        wall_start, cpu_start = self.start()
        self._left -= messages
        if self._left <= 0 and not self.numbers.done():
            wall, cpu = time.perf_counter() - wall_start, time.process_time() - cpu_start
            self.numbers.set_result({"per_second": self._messages / wall, "per_cpu_second": self._messages / cpu})


class RunnerLoop:
    """Side A: the stage runner."""

    def __init__(self, kind: str, url: str, traces: str | None) -> None:
        self._settings = Broker(kind, url).settings()
        settings = ObservabilitySettings(_env_file=None, otel_exporter_otlp_endpoint=traces, log_level="WARNING")
        self._telemetry = setup("benchmark", settings)
        self._producer = EventProducer(self._settings, source="benchmark")

    async def start(self) -> None:
        await self._producer.start()

    async def consume(self, topic: str) -> dict[str, float]:
        """Reads the whole topic in a new group and returns the rates."""
        watch = Stopwatch(MESSAGES)

        async def count(_: Envelope) -> None:
            watch.count()

        async def give_up(_: Envelope, given_up: GivenUp) -> None:
            watch.numbers.set_exception(RuntimeError(f"given up: {given_up.detail}"))

        runner = StageRunner(
            settings=self._settings,
            topic=replace(REWRITE, name=topic),
            group=f"bench.{uuid.uuid4().hex}",
            handler=count,
            give_up=give_up,
            producer=self._producer,
            telemetry=self._telemetry,
        )
        await runner.start()
        try:
            return await watch.numbers
        finally:
            await runner.stop(5)

    async def close(self) -> None:
        await self._producer.stop(1)
        self._telemetry.flush()


class RawLoop:
    """Side B: a bare consumer loop."""

    def __init__(self, kind: str, url: str) -> None:
        self._settings = Broker(kind, url).settings()

    async def start(self) -> None: ...

    async def consume(self, topic: str, messages: int) -> dict[str, float]:
        """Reads the whole topic in a new group and returns the rates."""
        options = group_options(self._settings, f"bench.{uuid.uuid4().hex}")
        consumer = make_consumer(self._settings, max_partition_fetch_bytes=FETCH_BYTES, **options)
        consumer.subscribe([topic])
        await consumer.start()
        watch = Stopwatch(messages)
        try:
            while not watch.numbers.done():
                batch = await consumer.getmany(timeout_ms=500)
                if batch:
                    watch.start()
                for records in batch.values():
                    for record in records:
                        RewriteTask.model_validate_json(record.value)
                    watch.count(len(records))
                await consumer.commit({found: records[-1].offset + 1 for found, records in batch.items()})
            return watch.numbers.result()
        finally:
            await consumer.stop()


class Collector:
    """A trace collector that accepts OTLP/HTTP and discards everything. Runs in its own process."""

    def __init__(self) -> None:
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/traces", self._take)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()

    async def port(self) -> int:
        assert self._runner is not None
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        await request.read()
        return web.Response()
