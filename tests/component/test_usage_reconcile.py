"""Tests of reconciling with admission states in a real Redis and with pending events in a real broker."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from services.gateway.quota.holds import Hold, HoldChange, HoldSize
from services.gateway.quota.redis_scripts import AdmissionConnection
from services.gateway.quota.state import AdmissionState
from services.usage.counting.count_batch import CountBatch
from services.usage.counting.handlers import to_ledger_event
from services.usage.counting.increments import CounterKey
from services.usage.counting.ledger_store import LedgerStore
from services.usage.reconciling.admission_check import OVERDUE_AFTER, MayBePending, check_admission
from services.usage.reconciling.admission_states import AdmissionStates, RedisAdmissionStates, StoredAdmission
from services.usage.reconciling.command import reconcile_stored
from services.usage.reconciling.full_reconciliation import RUNS, ScheduledReconcile
from services.usage.reconciling.pending import pending_events
from services.usage.settings import ReconcileSettings
from shared.contracts import redis_keys
from shared.contracts.admission_state import StoredHold, to_ms
from shared.contracts.contract import format_utc, new_id, now_utc, period_of
from shared.contracts.quota import PLAN_LIMITS, Plan, TenantQuota
from shared.contracts.topics import USAGE_RECORDED, all_topics
from shared.contracts.usage import UsageRecorded
from shared.messaging.cloudevents import decode, encode
from shared.messaging.connection import group_options, make_consumer
from shared.messaging.publish.producer import EventProducer
from shared.messaging.topics import create_topics
from shared.storage.sqlite import SqliteDatabase
from tests.unit.usage_fixtures import ending, operation

PERIOD = period_of(now_utc())
LONG_AGO = timedelta(days=35)


async def no_sleep(seconds: float) -> None: ...


def nothing_pending(key: CounterKey) -> bool:
    return False


@dataclass
class Usage:
    settings: ReconcileSettings
    database: SqliteDatabase
    ledger: LedgerStore
    counting: CountBatch
    redis: Redis
    admission: AdmissionState
    tenant: str

    @property
    def state(self) -> str:
        """The Redis key of the tenant's admission state."""
        return redis_keys.admission_counters(self.tenant, PERIOD)

    async def quota(self, plan: Plan = Plan.FREE) -> TenantQuota:
        return TenantQuota(
            tenant_id=self.tenant,
            period=PERIOD,
            plan=plan,
            plan_version=0,
            limits=PLAN_LIMITS[plan],
            counters=await self.ledger.counters(self.tenant, PERIOD),
        )

    async def install(self, *holds: StoredHold, plan: Plan = Plan.FREE) -> None:
        """Installs the tenant's state as the gateway does."""
        run_id, token = await self.admission.begin_rebuild(self.tenant, PERIOD, new_id())
        assert await self.admission.install(run_id, token, await self.quota(plan), holds) == "installed"

    async def differences(
        self,
        states: AdmissionStates | None = None,
        may_be_pending: MayBePending = nothing_pending,
        sleep: Callable[[float], Awaitable[None]] = no_sleep,
    ) -> list[tuple[str, str, str, int]]:
        """What, where, meter and amount of this tenant's differences."""
        found = await check_admission(states or RedisAdmissionStates(self.redis), self.ledger, may_be_pending, sleep)
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
    made = Usage(settings, database, ledger, counting, redis, AdmissionState(connection), new_id())
    yield made
    of = (made.tenant, PERIOD)
    await redis.delete(made.state, redis_keys.admission_holds(*of), redis_keys.admission_due(*of))
    await redis.aclose()
    await connection.stop(1)
    await database.stop(5)


def hold(tokens: int, due: datetime, ended: bool = False) -> StoredHold:
    return StoredHold(new_id(), 0 if ended else 1, tokens, 0, ended=ended, counted=False, due=due)


async def test_an_intact_state_has_no_difference(usage: Usage) -> None:
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
async def test_a_wrong_field_is_reported(
    usage: Usage, field: str, by: int, difference: tuple[str, str, str, int]
) -> None:
    await usage.counting.count([operation(new_id(), tenant_id=usage.tenant, period=PERIOD)])
    await usage.install(hold(500, datetime.now(UTC) + timedelta(seconds=60)))
    await usage.redis.hincrby(redis_keys.admission_counters(usage.tenant, PERIOD), field, by)
    assert await usage.differences() == [difference]


async def test_a_base_above_newer_counters_is_reported(usage: Usage) -> None:
    await usage.install(hold(500, datetime.now(UTC) + timedelta(seconds=60)))
    await usage.counting.count([operation(new_id(), tenant_id=usage.tenant, period=PERIOD)])
    await usage.redis.hincrby(redis_keys.admission_counters(usage.tenant, PERIOD), "be", 1)
    assert await usage.differences() == [("admission base", PERIOD, "embeddings", 1)]


class Between(AdmissionStates):
    """Runs `happens` after all states were read and before one of them is read again."""

    def __init__(self, redis: Redis, happens: Callable[[], Awaitable[object]]) -> None:
        self._states = RedisAdmissionStates(redis)
        self._happens = happens

    async def states(self) -> tuple[list[StoredAdmission], datetime]:
        found = await self._states.states()
        await self._happens()
        return found

    async def state(self, key: CounterKey) -> StoredAdmission | None:
        return await self._states.state(key)


@pytest.mark.parametrize("plan", [Plan.FREE, Plan.ENTERPRISE])
async def test_a_state_with_less_than_was_counted_is_reported(usage: Usage, plan: Plan) -> None:
    """It would admit too much by the difference."""
    counted = [
        operation(new_id(), tenant_id=usage.tenant, period=PERIOD, embeddings=2),
        ending(new_id(), tenant_id=usage.tenant, period=PERIOD),
    ]
    await usage.counting.count(counted)
    soon = datetime.now(UTC) + timedelta(seconds=60)
    await usage.install(hold(6, soon, ended=True), plan=plan)
    await usage.redis.hset(usage.state, mapping={"v": 0, "bu": 0, "bt": 0, "be": 0})
    assert await usage.differences() == [
        ("admission behind", PERIOD, "embeddings", -2),
        ("admission behind", PERIOD, "tokens", 6 - 15),
        ("admission behind", PERIOD, "upgrades", -1),
    ]


async def test_counted_usage_that_is_still_held_is_no_difference(usage: Usage) -> None:
    await usage.install(hold(15, datetime.now(UTC) + timedelta(seconds=60), ended=True))
    await usage.counting.count([operation(new_id(), tenant_id=usage.tenant, period=PERIOD)])
    assert await usage.differences() == []


async def test_a_state_that_changes_while_it_is_compared_is_no_difference(usage: Usage) -> None:
    """Usage is admitted and counted between the reading of states and that of counters."""
    await usage.install()

    async def admitted_and_counted() -> None:
        size = HoldSize(upgrades=0, tokens=15, embeddings=0)
        now = datetime.now(UTC)
        hold = Hold(usage.tenant, new_id(), PERIOD, size, now + timedelta(seconds=60))
        admitted = await usage.admission.admit(hold, now_ms=to_ms(now))
        assert admitted.verdict == "admitted"
        await usage.counting.count([operation(new_id(), tenant_id=usage.tenant, period=PERIOD)])

    assert await usage.differences(Between(usage.redis, admitted_and_counted)) == []

    async def confirmed_too() -> None:
        await admitted_and_counted()
        assert await usage.admission.confirm(usage.tenant, PERIOD, await usage.quota(), []) == "confirmed"

    assert await usage.differences(Between(usage.redis, confirmed_too)) == []


@pytest.mark.parametrize("run", ["another", None], ids=["another Redis", "cold"])
async def test_a_state_lost_while_it_is_compared_is_no_difference(usage: Usage, run: str | None) -> None:
    await usage.install()

    async def counted_and_lost() -> None:
        await usage.counting.count([operation(new_id(), tenant_id=usage.tenant, period=PERIOD)])
        if run is None:
            await usage.redis.delete(usage.state)
        else:
            await usage.redis.hset(usage.state, "run", run)

    assert await usage.differences(Between(usage.redis, counted_and_lost)) == []


def late_hold(tokens: int, ended: bool) -> StoredHold:
    return hold(tokens, datetime.now(UTC) - OVERDUE_AFTER - timedelta(seconds=5), ended=ended)


@pytest.mark.parametrize("ended", [True, False])
async def test_an_overdue_hold_is_reported(usage: Usage, ended: bool) -> None:
    late, in_time = late_hold(40, ended), hold(9, datetime.now(UTC) - timedelta(seconds=5))
    await usage.install(late, in_time)
    found = ("hold overdue", f"{PERIOD} {late.hold_id}")
    expected = [(*found, "tokens", 40)] if ended else [(*found, "tokens", 40), (*found, "upgrades", 1)]
    assert await usage.differences() == expected


async def test_an_ended_hold_is_not_overdue_while_events_are_pending(usage: Usage) -> None:
    """The usage service was unavailable, so the gateway could not settle the hold."""
    ended, open_ = late_hold(40, ended=True), late_hold(0, ended=False)
    await usage.install(ended, open_)
    overdue_open = ("hold overdue", f"{PERIOD} {open_.hold_id}", "upgrades", 1)
    assert await usage.differences(may_be_pending=lambda key: key == (usage.tenant, PERIOD)) == [overdue_open]
    assert len(await usage.differences(may_be_pending=lambda key: key == (usage.tenant, "2001-01"))) == 2


async def test_an_ended_hold_is_checked_again_before_it_is_reported(usage: Usage) -> None:
    """The usage service has just counted everything: the gateway settles the hold within seconds."""
    ended = late_hold(40, ended=True)
    await usage.install(ended)
    due = redis_keys.admission_due(usage.tenant, PERIOD)

    async def gateway_looks(seconds: float) -> None:
        await usage.redis.zadd(due, {ended.hold_id: (datetime.now(UTC).timestamp() + 30) * 1000})

    assert await usage.differences(sleep=gateway_looks) == []
    await usage.redis.zadd(due, {ended.hold_id: 1})

    async def settled(seconds: float) -> None:
        change = HoldChange(ended.hold_id, "left")
        await usage.admission.confirm(usage.tenant, PERIOD, await usage.quota(), [change])

    assert await usage.differences(sleep=settled) == []


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


async def test_events_in_the_topics_are_pending_and_no_difference(usage: Usage) -> None:
    group = f"test.{new_id()}"
    counted, pending = recorded(usage.tenant, 10), [recorded(usage.tenant, 7), recorded(usage.tenant, 8)]
    free = recorded(new_id(), 0).model_copy(update={"embeddings": 0})
    producer = EventProducer(usage.settings, source="test")
    await producer.start()
    try:
        for event in (counted, *pending, pending[0], free):
            await producer.publish(USAGE_RECORDED, event.tenant_id, event, event_id=event.event_id)
    finally:
        await producer.stop(1)
    value, headers = encode(USAGE_RECORDED, counted, source="test", event_id=counted.event_id)
    oldest = now_utc() - LONG_AGO
    await usage.counting.count([to_ledger_event(decode(USAGE_RECORDED, value, headers), oldest)])
    found = await pending_events(usage.settings, group, usage.ledger, oldest)
    ours = {(amount.meter, amount.amount) for amount in found.amounts if amount.tenant_id == usage.tenant}
    assert ours == {("tokens", 15), ("embeddings", 2)}
    assert found.may_have(CounterKey(usage.tenant, PERIOD))
    assert found.may_have(CounterKey(free.tenant_id, PERIOD))
    assert not found.may_have(CounterKey(usage.tenant, "2001-01"))
    few = await pending_events(usage.settings, group, usage.ledger, oldest, most=1)
    assert not few.all_read
    assert few.may_have(CounterKey("anybody", PERIOD))
    await commit_everything(usage.settings, group)
    assert (await pending_events(usage.settings, group, usage.ledger, oldest)).events == 0


async def commit_everything(settings: ReconcileSettings, group: str) -> None:
    """Commits the end of the topic for the group."""
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


async def test_a_full_reconciliation(usage: Usage) -> None:
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
    ours = [d for d in found.to_json()["differences"] if d["tenant_id"] == usage.tenant]
    assert [(d["meter"], d["amount"]) for d in ours] == [("tokens", 1)]


async def test_only_one_process_reconciles_per_interval(tmp_path: Path, usage: Usage) -> None:
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
