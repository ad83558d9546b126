"""Reconciling with the holds of admission in a real Redis and with what a real broker still has."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from services.gateway.admission.holds import HoldSize
from services.gateway.admission.redis_scripts import AdmissionConnection
from services.gateway.admission.state import AdmissionState
from services.gateway.admission.terms import InstalledHold
from services.usage.admission_check import OVERDUE_AFTER, check_admission
from services.usage.admission_redis import RedisAdmissionStates
from services.usage.count_batch import CountBatch
from services.usage.handlers import to_ledger_event
from services.usage.ledger_store import LedgerStore
from services.usage.pending import pending_events
from services.usage.reconcile import reconcile_stored
from services.usage.scheduled_reconcile import RUNS, ScheduledReconcile
from services.usage.settings import ReconcileSettings
from shared.contracts import redis_keys
from shared.contracts.contract import format_utc, now_utc, period_of
from shared.contracts.ids import new_id
from shared.contracts.plans import PLAN_LIMITS, Plan, TenantQuota
from shared.contracts.topics import USAGE_RECORDED, all_topics
from shared.contracts.usage_events import UsageRecorded
from shared.messaging.cloudevents import decode, encode
from shared.messaging.connection import group_options, make_consumer
from shared.messaging.producer import EventProducer
from shared.messaging.topic_admin import create_topics
from shared.storage.sqlite import SqliteDatabase
from tests.unit.usage_fixtures import operation

PERIOD = period_of(now_utc())
LONG_AGO = timedelta(days=35)


@dataclass
class Usage:
    settings: ReconcileSettings
    database: SqliteDatabase
    ledger: LedgerStore
    counting: CountBatch
    redis: Redis
    admission: AdmissionState
    tenant: str

    async def install(self, *holds: InstalledHold) -> None:
        """The gateway's own state of the tenant, as of now."""
        run_id, token = await self.admission.begin_rebuild(self.tenant, PERIOD, new_id())
        quota = TenantQuota(
            tenant_id=self.tenant,
            period=PERIOD,
            plan=Plan.FREE,
            plan_version=0,
            limits=PLAN_LIMITS[Plan.FREE],
            counters=await self.ledger.counters(self.tenant, PERIOD),
        )
        assert await self.admission.install(run_id, token, quota, holds) == "installed"

    async def differences(self) -> list[tuple[str, str, str, int]]:
        """Of this tenant: what, where, meter, amount."""
        found = await check_admission(RedisAdmissionStates(self.redis), self.ledger)
        return [(d.what, d.where, d.meter, d.amount) for d in found.differences if d.tenant_id == self.tenant]


@pytest.fixture
async def usage(tmp_path: Path, kafka_servers: str, redis_url: str) -> AsyncIterator[Usage]:
    settings = ReconcileSettings(
        _env_file=None,
        data_dir=tmp_path,
        mongodb_url=None,
        redis_url=SecretStr(redis_url),
        kafka_bootstrap_servers=kafka_servers,
        kafka_enable_idempotence=False,
    )
    await create_topics(settings, all_topics())
    database = SqliteDatabase(tmp_path / "usage.sqlite3")
    ledger = LedgerStore(database)
    await database.start()
    connection = AdmissionConnection(redis_url)
    await connection.start()
    redis = Redis.from_url(redis_url)
    counting = CountBatch(ledger, ledger.registry, owner="one", lease_seconds=5.0)
    yield Usage(settings, database, ledger, counting, redis, AdmissionState(connection), new_id())
    await redis.aclose()
    await connection.stop(1)
    await database.stop(5)


def hold(tokens: int, due: datetime, ended: bool = False) -> InstalledHold:
    size = HoldSize(upgrades=0 if ended else 1, tokens=tokens, embeddings=0)
    return InstalledHold(new_id(), size, ended=ended, counted=False, due_ms=round(due.timestamp() * 1000))


async def test_a_sound_state_has_no_difference(usage: Usage) -> None:
    await usage.counting.count([operation(new_id(), tenant_id=usage.tenant, period=PERIOD)])
    soon = datetime.now(UTC) + timedelta(seconds=60)
    await usage.install(hold(500, soon), hold(70, soon, ended=True))
    assert await usage.differences() == []
    await usage.counting.count([operation(new_id(), tenant_id=usage.tenant, period=PERIOD)])
    assert await usage.differences() == []  # it is older than the counters now, which is sound


@pytest.mark.parametrize(
    ("field", "by", "difference"),
    [
        ("bt", 3, ("admission base", PERIOD, "tokens", 3)),
        ("bt", -3, ("admission base", PERIOD, "tokens", -3)),
        ("v", 1, ("admission", PERIOD, "version", 1)),
        ("ht", -20, ("sum of holds", PERIOD, "tokens", -20)),
        ("hu", 1, ("sum of holds", PERIOD, "upgrades", 1)),
    ],
)
async def test_what_is_off_is_named(usage: Usage, field: str, by: int, difference: tuple[str, str, str, int]) -> None:
    await usage.counting.count([operation(new_id(), tenant_id=usage.tenant, period=PERIOD)])
    await usage.install(hold(500, datetime.now(UTC) + timedelta(seconds=60)))
    await usage.redis.hincrby(redis_keys.admission_counters(usage.tenant, PERIOD), field, by)
    assert await usage.differences() == [difference]


async def test_a_base_above_newer_counters_is_wrong(usage: Usage) -> None:
    await usage.install()
    await usage.counting.count([operation(new_id(), tenant_id=usage.tenant, period=PERIOD)])
    await usage.redis.hincrby(redis_keys.admission_counters(usage.tenant, PERIOD), "be", 1)
    assert await usage.differences() == [("admission base", PERIOD, "embeddings", 1)]


async def test_a_hold_that_outlives_its_time_is_named(usage: Usage) -> None:
    now = datetime.now(UTC)
    late, in_time = (
        hold(40, now - OVERDUE_AFTER - timedelta(seconds=5), ended=True),
        hold(9, now - timedelta(seconds=5)),
    )
    await usage.install(late, in_time)
    assert await usage.differences() == [("hold overdue", f"{PERIOD} {late.hold_id}", "tokens", 40)]


async def test_a_state_of_an_earlier_redis_is_not_compared(usage: Usage) -> None:
    await usage.install()
    name = redis_keys.admission_counters(usage.tenant, PERIOD)
    await usage.redis.hset(name, mapping={"run": "another", "bt": 10**6})
    assert await usage.differences() == []


def recorded(tenant_id: str, tokens: int) -> UsageRecorded:
    return UsageRecorded(
        event_id=new_id(),
        tenant_id=tenant_id,
        component="upgrader",
        operation="rewrite",
        tokens_in=tokens,
        embeddings=1,
        period=PERIOD,
        occurred_at=now_utc(),
    )


async def test_what_the_topics_still_have_is_pending_and_no_difference(usage: Usage) -> None:
    group = f"test.{new_id()}"
    counted, pending = recorded(usage.tenant, 10), [recorded(usage.tenant, 7), recorded(usage.tenant, 8)]
    producer = EventProducer(usage.settings, source="test")
    await producer.start()
    try:
        for event in (counted, *pending, pending[0]):
            await producer.publish(USAGE_RECORDED, event.tenant_id, event, event_id=event.event_id)
    finally:
        await producer.stop(1)
    value, headers = encode(USAGE_RECORDED, counted, source="test", event_id=counted.event_id)
    oldest = now_utc() - LONG_AGO
    await usage.counting.count([to_ledger_event(decode(USAGE_RECORDED, value, headers), oldest)])
    found = await pending_events(usage.settings, group, usage.ledger, oldest)
    ours = {(amount.meter, amount.amount) for amount in found.amounts if amount.tenant_id == usage.tenant}
    assert ours == {("tokens", 15), ("embeddings", 2)}
    few = await pending_events(usage.settings, group, usage.ledger, oldest, most=1)
    assert not few.all_read
    await commit_everything(usage.settings, group)
    assert (await pending_events(usage.settings, group, usage.ledger, oldest)).events == 0


async def commit_everything(settings: ReconcileSettings, group: str) -> None:
    """As if the group had read the topic to its end."""
    consumer = make_consumer(settings, **group_options(settings, group))
    consumer.subscribe([USAGE_RECORDED.name])
    await consumer.start()
    try:
        while not consumer.assignment():
            await consumer.getmany(timeout_ms=100)
        ends = await consumer.end_offsets(list(consumer.assignment()))
        await consumer.commit(ends)
    finally:
        await consumer.stop()


async def test_everything_at_once(usage: Usage) -> None:
    await usage.counting.count([operation(new_id(), tenant_id=usage.tenant, period=PERIOD)])
    await usage.install(hold(5, datetime.now(UTC) + timedelta(seconds=60)))
    found = await reconcile_stored(usage.settings)
    assert found.unreached == {}
    assert found.admission is not None
    assert (found.ledger.clean, found.admission.holds >= 1) == (True, True)
    await usage.redis.hincrby(redis_keys.admission_counters(usage.tenant, PERIOD), "ht", 1)
    found = await reconcile_stored(usage.settings)
    assert not found.clean
    assert f"{usage.tenant}  sum of holds {PERIOD}  tokens: stored 6, ledger 5, off by +1" in found.to_text()
    told = [d for d in found.to_json()["differences"] if d["tenant_id"] == usage.tenant]
    assert [(d["meter"], d["amount"]) for d in told] == [("tokens", 1)]
    await usage.redis.delete(redis_keys.admission_counters(usage.tenant, PERIOD))


async def test_one_of_many_processes_reconciles_once_in_an_interval(tmp_path: Path, usage: Usage) -> None:
    database = SqliteDatabase(tmp_path / "runs.sqlite3")
    jobs = [ScheduledReconcile(database, timedelta(hours=1), lambda: reconcile_stored(usage.settings)) for _ in "123"]
    runs = database.collection(RUNS)
    await database.start()
    try:
        assert [await job.run_if_due() for job in jobs] == [True, False, False]
        earlier = format_utc(now_utc() - timedelta(hours=1, seconds=1))
        await runs.update_one({"_id": "last"}, {"$set": {"startedAt": earlier}})
        assert [await job.run_if_due() for job in jobs] == [True, False, False]
    finally:
        await database.stop(1)
