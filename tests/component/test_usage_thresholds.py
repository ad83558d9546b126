"""Tests of threshold announcements on a real store and broker: each is made once, despite crashes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.usage.counting.count_batch import CountBatch
from services.usage.counting.increments import CounterKey
from services.usage.counting.ledger_store import LedgerStore
from services.usage.plans.plans import PLANS, PlanStore
from services.usage.plans.routes import plan_routes
from services.usage.plans.thresholds import ANNOUNCED, ThresholdOutbox, Thresholds
from shared.contracts.contract import new_id, now_utc, period_of
from shared.contracts.internal_http import INTERNAL_TOKEN_HEADER
from shared.contracts.quota import Plan, PlanChange, QuotaThresholdReached
from shared.contracts.topics import QUOTA_THRESHOLD_REACHED
from shared.messaging.cloudevents import decode
from shared.messaging.operate.topic_reading import read_all
from shared.messaging.publish.producer import EventProducer
from shared.messaging.settings import KafkaSettings
from shared.messaging.topics import create_topics
from shared.service.http import internal_app
from shared.service.settings import ObservabilitySettings
from shared.service.telemetry import Telemetry
from shared.storage.sqlite import SqliteDatabase
from tests.component.test_usage_ledger import Killed
from tests.unit.usage_fixtures import ending, operation

PERIOD = period_of(now_utc())


class Usage:
    """The parts of a usage process on one store. Several can share a folder."""

    def __init__(self, path: Path, kafka: KafkaSettings) -> None:
        self.kafka = kafka
        self.tenant = new_id()
        self.database = SqliteDatabase(path / "usage.sqlite3")
        self.ledger = LedgerStore(self.database)
        self.plans = PlanStore(self.database.collection(PLANS))
        self.producer = EventProducer(kafka, source="usage")
        self.outbox = ThresholdOutbox(self.database, self.producer)
        away = KafkaSettings(_env_file=None, kafka_bootstrap_servers="127.0.0.1:1", kafka_enable_idempotence=False)
        self.outbox_without_broker = ThresholdOutbox(self.database, EventProducer(away, source="usage"))
        self.announced = self.database.collection(ANNOUNCED)
        self.thresholds = Thresholds(self.ledger, self.plans, self.outbox)
        self.counting = self.new_counting()
        app = internal_app(
            Telemetry("usage", ObservabilitySettings()),
            internal_token="t",
            routers=[plan_routes(self.ledger, self.plans, self.thresholds.announce_reached)],
        )
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://usage", headers={INTERNAL_TOKEN_HEADER: "t"}
        )

    def new_counting(self, on_counters_raised: Any = None) -> CountBatch:
        return CountBatch(
            self.ledger,
            self.ledger.registry,
            owner=new_id(),
            lease_seconds=0.0,
            on_counters_raised=on_counters_raised or self.thresholds.announce_reached,
        )

    async def use(self, tokens: int, period: str = PERIOD) -> None:
        event = operation(new_id(), tenant_id=self.tenant, tokens_in=tokens, tokens_out=0, period=period)
        await self.counting.count([event])

    async def announced_thresholds(self) -> list[tuple[str, int, int]]:
        """Meter, threshold and month of every announcement of the tenant, in the order of their ids."""
        stored = await self.announced.find({"tenantId": self.tenant}, sort=[("_id", 1)])
        reached = [QuotaThresholdReached.model_validate(record["facts"][0]["data"]) for record in stored]
        return [(one.meter.value, one.threshold_percent, one.period.start.month) for one in reached]


@pytest.fixture
async def usage(tmp_path: Path, kafka_servers: str) -> AsyncIterator[Usage]:
    kafka = KafkaSettings(_env_file=None, kafka_bootstrap_servers=kafka_servers, kafka_enable_idempotence=False)
    await create_topics(kafka)
    usage = Usage(tmp_path, kafka)
    await usage.database.start()
    await usage.producer.start()
    yield usage
    await usage.http.aclose()
    await usage.producer.stop(1)
    await usage.database.stop(5)


async def test_each_threshold_is_announced_once(usage: Usage) -> None:
    this_month = now_utc().month
    await usage.use(799_999)
    assert await usage.announced_thresholds() == []
    await usage.use(1)
    assert await usage.announced_thresholds() == [("tokens", 80, this_month)]
    await usage.use(100_000)
    assert await usage.announced_thresholds() == [("tokens", 80, this_month)]
    await usage.use(200_000)
    both = [("tokens", 100, this_month), ("tokens", 80, this_month)]
    assert await usage.announced_thresholds() == both
    await usage.use(5)
    assert await usage.announced_thresholds() == both
    [first] = await usage.announced.find({"_id": f"{usage.tenant}|{PERIOD}|tokens|80"})
    assert (first["facts"][0]["data"]["used"], first["facts"][0]["data"]["limit"]) == (800_000, 1_000_000)


async def test_every_meter_and_month_has_its_own_thresholds(usage: Usage) -> None:
    change = PlanChange(plan=Plan.FREE, overrides={"upgrades": 1, "embeddings": 2})
    await usage.plans.set(usage.tenant, change)
    await usage.counting.count(
        [
            ending("a" + new_id(), tenant_id=usage.tenant, period="2026-10"),
            ending("b" + new_id(), tenant_id=usage.tenant, period="2026-09"),
            ending("c" + new_id(), "original", tenant_id=usage.tenant, period="2026-08"),
            operation(new_id(), tenant_id=usage.tenant, period="2026-10", embeddings=2),
        ]
    )
    assert await usage.announced_thresholds() == [
        ("upgrades", 100, 9),
        ("upgrades", 80, 9),
        ("embeddings", 100, 10),
        ("embeddings", 80, 10),
        ("upgrades", 100, 10),
        ("upgrades", 80, 10),
    ]


async def test_an_unlimited_tenant_reaches_nothing(usage: Usage) -> None:
    await usage.plans.set(usage.tenant, PlanChange(plan=Plan.ENTERPRISE))
    await usage.use(10**12)
    assert await usage.announced_thresholds() == []


@pytest.mark.parametrize("noticed", [False, True], ids=["before it was recorded", "after it was recorded"])
async def test_a_crash_after_counting_loses_and_repeats_no_announcement(usage: Usage, noticed: bool) -> None:
    async def dying(keys: Any) -> None:
        if noticed:
            await usage.thresholds.announce_reached(keys)
        raise Killed

    event = operation(new_id(), tenant_id=usage.tenant, tokens_in=1_000_000, period=PERIOD)
    with pytest.raises(Killed):
        await usage.new_counting(dying).count([event])
    assert (await usage.ledger.counters(usage.tenant, PERIOD)).tokens == 1_000_005
    # Another process, which remembers nothing.
    fresh = Thresholds(usage.ledger, usage.plans, usage.outbox)
    assert await usage.new_counting(fresh.announce_reached).resume() == 1
    assert [percent for _, percent, _ in await usage.announced_thresholds()] == [100, 80]


async def test_concurrent_processes_announce_a_threshold_once(usage: Usage) -> None:
    await usage.new_counting(_announce_nothing).count(
        [operation(new_id(), tenant_id=usage.tenant, tokens_in=900_000, period=PERIOD)]
    )
    key = CounterKey(usage.tenant, PERIOD)
    several = [Thresholds(usage.ledger, usage.plans, usage.outbox) for _ in range(5)]
    await asyncio.gather(*(one.announce_reached([key]) for one in several))
    assert len(await usage.announced_thresholds()) == 1


async def test_a_smaller_plan_reaches_a_threshold_at_once(usage: Usage) -> None:
    await usage.http.put(f"/internal/tenants/{usage.tenant}/plan", json={"plan": "PRO"})
    await usage.use(900_000)
    assert await usage.announced_thresholds() == []
    answer = await usage.http.put(f"/internal/tenants/{usage.tenant}/plan", json={"plan": "FREE"})
    assert (answer.json()["limits"]["tokens"], answer.json()["planVersion"]) == (1_000_000, 2)
    assert [percent for _, percent, _ in await usage.announced_thresholds()] == [80]
    answer = await usage.http.put(
        f"/internal/tenants/{usage.tenant}/plan", json={"plan": "FREE", "overrides": {"tokens": None}}
    )
    assert answer.json()["limits"] == {"upgrades": 1000, "tokens": None, "embeddings": 10_000}


async def test_thresholds_are_published_once_the_broker_is_back(usage: Usage) -> None:
    lonely = Thresholds(usage.ledger, usage.plans, usage.outbox_without_broker)
    event = operation(new_id(), tenant_id=usage.tenant, tokens_in=1_000_000, period=PERIOD)
    await usage.new_counting(lonely.announce_reached).count([event])
    await usage.outbox.sweep()
    for number in range(2):
        found = [
            decode(QUOTA_THRESHOLD_REACHED, record.value, record.headers)
            for record in await read_all(usage.kafka, QUOTA_THRESHOLD_REACHED)
        ]
        ours = [
            envelope
            for envelope in found
            if isinstance(envelope.data, QuotaThresholdReached) and envelope.data.tenant_id == usage.tenant
        ]
        assert len({envelope.event_id for envelope in ours}) == 2
        assert len(ours) == 2
        await usage.outbox.sweep()
        assert number or await usage.announced.count({"unsettledSince": {"$exists": True}}) == 0


async def _announce_nothing(keys: Any) -> None: ...
