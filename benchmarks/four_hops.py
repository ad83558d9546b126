"""Measures an upgrade's latency without the model: four hops between processes, each with a durable record."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord

from benchmarks.backends import Broker, open_sqlite, running
from benchmarks.pairs import Measured, Row, medians, paired, ratios
from benchmarks.side_process import SideProcess, side
from benchmarks.upgrade_messages import make_task, traceparent
from deploy.local.servers import start_valkey
from services.gateway.upgrades.accepted_record import AcceptedRecord
from services.gateway.upgrades.accepted_store import ACCEPTED, AcceptedStore
from services.upgrader.ending import EndingStage, Ladder
from services.upgrader.prompts.platform_templates import PLATFORM_TEMPLATE, PromptTemplate
from services.upgrader.results import RESULTS, Results
from services.upgrader.rewriting.rewrite import Repair, Rewrite, RewriteRequest
from shared.contracts.topics import INBOX_OF, REWRITE
from shared.contracts.upgrade_results import PromptVersion, UpgradeResult
from shared.contracts.upgrade_tasks import ComponentUsage, Stage, StageOutput, SummarizeTask, UpgradeTask
from shared.messaging.connection import connection_options, group_options, make_consumer
from shared.messaging.consume.stage_runner import StageRunner
from shared.messaging.publish.outbox import FACT_SWEEP_SECONDS, FactOutbox, outbox_collection
from shared.messaging.publish.producer import EventProducer
from shared.messaging.publish.progress import ProgressLog, ReplyListener
from shared.messaging.topics import create_topics
from shared.service.process import Periodic
from shared.service.recorded_stage import RecordedStage
from shared.service.repair_holds import OpenRepairHolds
from shared.service.settings import ObservabilitySettings
from shared.service.telemetry import setup
from shared.storage.opening import open_redis
from shared.storage.settings import StorageSettings
from shared.storage.sqlite import SqliteDatabase

ALONE, TOGETHER = 1, 8
UPGRADES = {ALONE: 24, TOGETHER: 80}
# Many short runs, so that other load on the machine affects both sides.
_PAIRS = 12
_HOPS = len(Stage)
_FIRST_UPGRADE_WITHIN_SECONDS = 30.0
_UPGRADE_WITHIN_SECONDS = 10.0
_SIDES = (
    "A is the pipeline without the work of its stages: the gateway's accepted record, the three stages with their "
    "recorded outputs, usage facts and progress events, and the reply that wakes the gateway; B is four bare aiokafka "
    "hops (driver, three stages, a reply topic) that validate the same message, write one SQLite row with its own "
    "commit and `synchronous=FULL`, and produce with acks=all. Both have a process per stage and one for the driver"
)
ONE = Row("four-hops", "ms, p50", f"{_SIDES}. One upgrade at a time.", goal=1.5, better="less")
EIGHT = Row("four-hops-8", "ms, p50", f"{_SIDES}. Eight upgrades in flight.", better="less")
ROWS = (ONE, EIGHT)
_IN_FLIGHT = {ONE.name: ALONE, EIGHT.name: TOGETHER}


async def measure(kind: str, chosen: Sequence[Row]) -> list[Measured]:
    """Measures the chosen rows on one kind of broker."""
    with tempfile.TemporaryDirectory(prefix="bench-hops-") as folder:
        async with running(kind) as broker, await start_valkey() as valkey:
            topics = (*INBOX_OF.values(), *(replace(REWRITE, name=_raw_topic(hop)) for hop in range(_HOPS + 1)))
            await create_topics(broker.settings())
            await create_topics(broker.settings(), topics)
            options: dict[str, Any] = {"kind": kind, "url": broker.url, "folder": folder}
            async with (
                _side("Stage", options | {"redis": valkey.url}) as ours,
                _side("Raw", options) as raw,
            ):
                for driver in (ours, raw):
                    await driver.call("once", within=_FIRST_UPGRADE_WITHIN_SECONDS + 5)
                pairs = await paired(partial(ours.call, "drive"), partial(raw.call, "drive"), pairs=_PAIRS)
    results = []
    for row in chosen:
        key = f"p50_{_IN_FLIGHT[row.name]}"
        absolute = medians(pairs, f"{{{key}:.1f}} ms")
        results.append(Measured(row.on(kind), row, ratios(pairs, key), absolute))
    return results


@asynccontextmanager
async def _side(prefix: str, options: dict[str, Any]) -> AsyncIterator[SideProcess]:
    """Runs the processes of a side: its hops, and the driver, which is yielded."""
    async with AsyncExitStack() as stack:
        for hop in range(_HOPS):
            await stack.enter_async_context(side(f"benchmarks.four_hops:{prefix}Hop", hop=hop, **options))
        yield await stack.enter_async_context(side(f"benchmarks.four_hops:{prefix}Driver", **options))


def _raw_topic(hop: int) -> str:
    return f"raw.hop-{hop}.v1"


class _Driver:
    """Sends upgrades and times them. Subclasses implement `_send` and call `_ended` when an upgrade has ended."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[None]] = {}

    async def once(self) -> None:
        """Waits until one upgrade has passed all hops, which shows that they have joined their groups."""
        await self._upgrade(_FIRST_UPGRADE_WITHIN_SECONDS)

    async def drive(self) -> dict[str, float]:
        """Measures the p50 in ms with one and with eight upgrades in flight."""
        return {f"p50_{n}": 1000 * median(await self._times(n)) for n in (ALONE, TOGETHER)}

    async def _times(self, in_flight: int) -> list[float]:
        async def one_after_another() -> list[float]:
            return [await self._upgrade(_UPGRADE_WITHIN_SECONDS) for _ in range(UPGRADES[in_flight] // in_flight)]

        return [t for times in await asyncio.gather(*(one_after_another() for _ in range(in_flight))) for t in times]

    async def _upgrade(self, within: float) -> float:
        task = make_task(SummarizeTask, list(Stage), reply_to="bench")
        ended = self._waiting[task.upgrade_id] = asyncio.get_running_loop().create_future()
        started = time.perf_counter()
        await self._send(task)
        await asyncio.wait_for(ended, within)
        return time.perf_counter() - started

    async def _send(self, task: SummarizeTask) -> None:
        raise NotImplementedError

    def _ended(self, upgrade_id: str) -> None:
        ended = self._waiting.pop(upgrade_id, None)
        if ended is not None and not ended.done():
            ended.set_result(None)


class _Ours:
    """The parts that every process of side A has: producer, database and progress log."""

    def __init__(self, kind: str, url: str, folder: str, redis: str, name: str) -> None:
        self.settings = Broker(kind, url).settings()
        self.telemetry = setup(name, ObservabilitySettings(_env_file=None, log_level="WARNING"))
        self.producer = EventProducer(self.settings, source=name)
        self.database = SqliteDatabase(Path(folder) / f"{name}.sqlite3")
        self.redis = open_redis(StorageSettings(_env_file=None, redis_url=redis))
        self.progress = ProgressLog(self.redis)

    async def start(self) -> None:
        for part in (self.producer, self.database, self.progress):
            await part.start()

    async def close(self) -> None:
        for part in (self.progress, self.database, self.producer):
            await part.stop(2)
        await self.redis.aclose()


class StageDriver(_Driver):
    """Side A's driver, which takes the place of the gateway: same record, message and reply, without HTTP."""

    def __init__(self, kind: str, url: str, folder: str, redis: str) -> None:
        super().__init__()
        self._parts = _Ours(kind, url, folder, redis, "gateway")
        self._store = AcceptedStore(self._parts.database.collection(ACCEPTED))
        self._replies = ReplyListener(self._parts.redis, "bench", self._on_result)

    async def start(self) -> None:
        await self._parts.start()
        await self._replies.start()

    async def close(self) -> None:
        await self._replies.stop(1)
        await self._parts.close()

    async def _send(self, task: SummarizeTask) -> None:
        trace = traceparent(sampled=False)
        record = AcceptedRecord(
            upgrade_id=task.upgrade_id,
            tenant_id=task.tenant_id,
            credential_id="bench",
            user_ref=task.user_ref,
            key_hash=None,
            body_hash=None,
            period=task.period,
            created_at=task.created_at,
            deadline=task.deadline,
            task=task.model_dump_json(by_alias=True),
            sealed_pii=None,
            traceparent=trace,
            open_since=task.created_at,
        )
        await self._store.insert(record)
        await self._parts.progress.accepted(task)
        inbox = INBOX_OF[Stage.SUMMARIZER]
        await self._parts.producer.publish(inbox, task.upgrade_id, task, subject=task.upgrade_id, traceparent=trace)

    async def _on_result(self, result: UpgradeResult) -> None:
        self._ended(result.upgrade_id)


class _SettledLedger:
    """A fake usage service that has counted everything."""

    async def missing(self, event_ids: Sequence[str]) -> set[str]:
        return set()


class _NoModel:
    """A fake rewriter that returns at once."""

    async def rewrite(self, request: RewriteRequest, reserve: timedelta, repair: Repair | None = None) -> Rewrite:
        return Rewrite(request.prompt, "", (), 0.5, (), _used("upgrader"), PromptVersion(name="upgrader", version=1))


class _PlatformTemplate:
    """Chooses without a store; a production upgrader knows the version for 2 s."""

    async def choose(self, _: UpgradeTask) -> PromptTemplate:
        return PLATFORM_TEMPLATE


def _used(component: str) -> ComponentUsage:
    return ComponentUsage(component=component, operation="bench", tokens_in=100, tokens_out=50, latency_ms=0)


class StageHop:
    """Side A's process of one stage: RecordedStage, or the upgrader's EndingStage, in a stage runner."""

    def __init__(self, kind: str, url: str, folder: str, redis: str, hop: int) -> None:
        self._stage = list(Stage)[hop]
        self._parts = _Ours(kind, url, folder, redis, self._stage.value)
        ends = self._stage is Stage.UPGRADER
        records = self._parts.database.collection(RESULTS if ends else outbox_collection("outputs"))
        self._outbox = FactOutbox(records, self._parts.producer, _SettledLedger())
        self._sweep = Periodic("fact sweep", self._outbox.sweep_all, FACT_SWEEP_SECONDS)
        self._handler: EndingStage | RecordedStage = (
            self._ending_stage()
            if ends
            else RecordedStage(
                stage=self._stage,
                outputs=self._outbox,
                producer=self._parts.producer,
                progress=self._parts.progress,
                work=self._nothing,
            )
        )
        self._runner = StageRunner(
            settings=self._parts.settings,
            topic=INBOX_OF[self._stage],
            group=f"{self._stage}.stage",
            handler=self._handler.handle,
            give_up=self._handler.give_up,
            producer=self._parts.producer,
            telemetry=self._parts.telemetry,
        )

    def _ending_stage(self) -> EndingStage:
        results = Results(self._outbox)
        ladder = Ladder(_NoModel(), results, fallback=None, cached_for=timedelta())
        return EndingStage(results, ladder, _PlatformTemplate(), OpenRepairHolds(), self._parts.progress)

    async def start(self) -> None:
        await self._parts.start()
        await self._sweep.start()
        await self._runner.start()

    async def close(self) -> None:
        await self._runner.stop(5)
        await self._sweep.stop(1)
        await self._parts.close()

    async def _nothing(self, _: UpgradeTask) -> StageOutput:
        return StageOutput(stage=self._stage, usage=[_used(self._stage.value)])


class _Raw:
    """The parts that every process of side B has: producer and SQLite file."""

    def __init__(self, kind: str, url: str, folder: str, name: str) -> None:
        self.settings = Broker(kind, url).settings()
        self.path = Path(folder) / f"raw-{name}.sqlite3"

    async def start(self) -> None:
        self.rows = open_sqlite(self.path, "CREATE TABLE rows (id TEXT PRIMARY KEY, body TEXT NOT NULL)")
        self.producer = AIOKafkaProducer(
            **connection_options(self.settings),
            acks="all",
            linger_ms=0,
            enable_idempotence=self.settings.kafka_enable_idempotence,
        )
        await self.producer.start()

    async def record_and_send(self, topic: str, task: UpgradeTask) -> None:
        """Commits one row, then sends the message and waits for its acknowledgement."""
        body = task.to_json()
        self.rows.execute("INSERT INTO rows VALUES (?, ?)", (task.upgrade_id, body.decode()))
        await self.producer.send_and_wait(topic, body, key=task.upgrade_id.encode())

    async def close(self) -> None:
        await self.producer.stop()
        self.rows.close()


class RawDriver(_Driver):
    """Side B's driver, which sends upgrades to the first topic and reads their ends from the last."""

    def __init__(self, kind: str, url: str, folder: str) -> None:
        super().__init__()
        self._parts = _Raw(kind, url, folder, "driver")
        self._replies: AIOKafkaConsumer = make_consumer(self._parts.settings, group_id=None)
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._parts.start()
        self._replies.subscribe([_raw_topic(_HOPS)])
        await self._replies.start()
        self._reading = asyncio.create_task(self._read())

    async def close(self) -> None:
        await _cancel(self._reading)
        await self._replies.stop()
        await self._parts.close()

    async def _read(self) -> None:
        async for record in self._replies:
            self._ended(SummarizeTask.model_validate_json(record.value).upgrade_id)

    async def _send(self, task: SummarizeTask) -> None:
        await self._parts.record_and_send(_raw_topic(0), task)


class RawHop:
    """Side B's process of one hop: writes a row and forwards each message, and commits offsets per batch."""

    def __init__(self, kind: str, url: str, folder: str, hop: int) -> None:
        self._parts = _Raw(kind, url, folder, f"hop-{hop}")
        self._hop = hop
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._parts.start()
        consumer = make_consumer(self._parts.settings, **group_options(self._parts.settings, f"raw.hop-{self._hop}"))
        consumer.subscribe([_raw_topic(self._hop)])
        await consumer.start()
        self._reading = asyncio.create_task(self._read(consumer))

    async def close(self) -> None:
        await _cancel(self._reading)
        await self._parts.close()

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        try:
            while True:
                batch = await consumer.getmany(timeout_ms=500)
                for records in batch.values():
                    for record in records:
                        await self._forward(record)
                if batch:
                    await consumer.commit({found: records[-1].offset + 1 for found, records in batch.items()})
        finally:
            await consumer.stop()

    async def _forward(self, record: ConsumerRecord) -> None:
        task = SummarizeTask.model_validate_json(record.value)
        await self._parts.record_and_send(_raw_topic(self._hop + 1), task)


async def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
