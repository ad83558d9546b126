"""The admission scripts on a real Valkey, compared with a model: limits are kept, and sums equal the holds."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from deploy.local.servers import ServerProcess, start_valkey
from services.gateway.quota.admission import Claim
from services.gateway.quota.holds import Hold, HoldChange, HoldSettlement, HoldSize
from services.gateway.quota.redis_scripts import AdmissionConnection
from services.gateway.quota.state import AdmissionState, AdmitAnswer
from shared.contracts import redis_keys
from shared.contracts.admission_state import StoredHold, from_ms
from shared.contracts.contract import new_id
from shared.contracts.internal_http import TenantCounters
from shared.contracts.quota import Limits, Plan, TenantQuota
from tests.component.admission_model import NOTHING, Amounts, ModelHold, ModelState

PERIOD = "2026-11"
NOW = 1_800_000_000_000
WINDOW = 60_000
RATE = 4

amounts = st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 3))
limits = st.tuples(st.integers(-1, 6), st.integers(-1, 10), st.integers(-1, 8))
once_in_a_while = st.integers(0, 9).map(lambda number: number == 9)


def quota(tenant: str, base: Amounts, limits: Amounts, version: int, plan_version: int) -> TenantQuota:
    none_if = [None if limit < 0 else limit for limit in limits]
    return TenantQuota(
        tenant_id=tenant,
        period=PERIOD,
        plan=Plan.FREE,
        plan_version=plan_version,
        limits=Limits(upgrades=none_if[0], tokens=none_if[1], embeddings=none_if[2]),
        counters=TenantCounters(
            tenant_id=tenant, period=PERIOD, upgrades=base[0], tokens=base[1], embeddings=base[2], version=version
        ),
    )


async def install(state: AdmissionState, tenant: str, quota: TenantQuota, holds: list[StoredHold] | None = None) -> str:
    run_id, token = await state.begin_rebuild(tenant, PERIOD, new_id())
    return await state.install(run_id, token, quota, holds or [])


class Valkey:
    """A Valkey with a connection and an event loop of its own, for the synchronous state machine."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.server: ServerProcess = self.run(start_valkey())
        self.connection = AdmissionConnection(self.server.url)
        self.run(self.connection.start())
        self.state = AdmissionState(self.connection)
        self.redis = Redis.from_url(self.server.url)

    def run(self, work: Awaitable[Any]) -> Any:
        return self.loop.run_until_complete(work)

    def restart(self) -> None:
        """Starts another process without data on the same port."""
        self.run(self.server.kill())
        self.server = self.run(start_valkey(self.server.port))

    def close(self) -> None:
        self.run(self.connection.stop(1))
        self.run(self.redis.aclose())
        self.run(self.server.stop())
        self.loop.close()


class Machine(RuleBasedStateMachine):
    valkey: Valkey
    holds: Bundle[str] = Bundle("holds")

    def __init__(self) -> None:
        super().__init__()
        self.tenant = new_id()
        self.model: ModelState | None = None
        self.now = NOW
        self.rate: list[tuple[int, str]] = []

    @property
    def state(self) -> AdmissionState:
        return self.valkey.state

    @initialize(base=amounts, limits=limits)
    def begin(self, base: Amounts, limits: Amounts) -> None:
        self.rebuild(base, limits, 0, 0)

    @rule(base=amounts, limits=limits, version=st.integers(0, 5), plan=st.integers(0, 3))
    def rebuild(self, base: Amounts, limits: Amounts, version: int, plan: int) -> None:
        kept = self.model.holds if self.model else {}
        wanted = [StoredHold(id_, *hold.size, hold.ended, hold.counted, from_ms(NOW)) for id_, hold in kept.items()]
        installed = self.valkey.run(install(self.state, self.tenant, quota(self.tenant, base, limits, version, plan),
                                            wanted))  # fmt: skip
        if self.model is None:
            assert installed == "installed"
            self.model = ModelState(base, limits, version, plan)
        else:
            assert installed == "warm"

    @rule(target=holds, need=amounts, step=st.integers(0, 40_000), limited=once_in_a_while)
    def admit(self, need: Amounts, step: int, limited: bool) -> Any:
        self.now += step
        hold_id = new_id()
        hold = Hold(self.tenant, hold_id, PERIOD, HoldSize(*need), from_ms(self.now + 70_000), subject="user")
        ask = {"now_ms": self.now, "rate_now_ms": self.now, "most_accepted": RATE if limited else 0}
        answer = self.valkey.run(self.state.admit(hold, **ask))
        self.rate = [(at, id_) for at, id_ in self.rate if at > self.now - WINDOW]
        if self.model is None:
            assert answer.verdict == "cold"
            return multiple()
        if limited and len(self.rate) >= RATE:
            assert answer.verdict == "rate_limited"
            assert answer.rate.frees_ms == min(at for at, _ in self.rate) + WINDOW - self.now > 0
            return multiple()
        meter = self.model.refusing_meter(need)
        if meter is not None:
            assert answer.verdict == "quota_exceeded"
            refused = answer.meter
            assert refused is not None
            found = (refused.limit, refused.used, refused.held)
            assert found == (self.model.limits[meter], self.model.base[meter], self.model.held()[meter])
            return multiple()
        assert answer.verdict == "admitted"
        self.model.holds[hold_id] = ModelHold(need)
        if limited:
            self.rate.append((self.now, hold_id))
            assert answer.rate.accepted == len(self.rate)
        assert (
            self.valkey.run(self.state.admit(hold, **ask)).verdict == "admitted"
        )  # sent again after a lost connection: the same hold
        return hold_id

    @rule(hold_id=holds)
    def release(self, hold_id: str) -> None:
        self.valkey.run(self.state.release(self.tenant, PERIOD, hold_id, subject="user"))
        if self.model:
            self.model.holds.pop(hold_id, None)
        self.rate = [(at, id_) for at, id_ in self.rate if id_ != hold_id]

    @rule(hold_id=holds, spent=amounts)
    def settle(self, hold_id: str, spent: Amounts) -> None:
        self.valkey.run(self.state.settle(self.tenant, PERIOD, [HoldSettlement(hold_id, *spent)], self.now))
        if self.model:
            self.model.settle(hold_id, spent)

    @rule(hold_id=holds, other=holds, base=amounts, version=st.integers(0, 3), left=amounts,
          what=st.sampled_from(["left", "drop", "counted", "keep"]))  # fmt: skip
    def confirm(self, hold_id: str, other: str, base: Amounts, version: int, left: Amounts, what: Any) -> None:
        limits = self.model.limits if self.model else NOTHING
        newer = quota(self.tenant, base, limits, version, 0)
        changes = [HoldChange(hold_id, what, *left, due_ms=self.now)]
        if other != hold_id:
            changes.append(HoldChange(other, "drop"))
        answer = self.valkey.run(self.state.confirm(self.tenant, PERIOD, newer, changes))
        if self.model is None:
            assert answer == "cold"
            return
        if version < self.model.version:
            assert answer == "old"
            return
        assert answer == "confirmed"
        self.model.base, self.model.version = base, version
        match what:
            case "left":
                self.model.left(hold_id, left)
            case "drop":
                self.model.holds.pop(hold_id, None)
            case "counted":
                self.model.counted_open(hold_id)
        if other != hold_id:
            self.model.holds.pop(other, None)

    @rule(limits=limits, version=st.integers(0, 6))
    def change_plan(self, limits: Amounts, version: int) -> None:
        self.valkey.run(self.state.set_limits(quota(self.tenant, NOTHING, limits, 0, version)))
        if self.model and version > self.model.plan_version:
            self.model.limits, self.model.plan_version = limits, version

    @rule(really=once_in_a_while)
    def flush(self, really: bool) -> None:
        if not really:
            return
        self.valkey.run(self.valkey.redis.flushall())
        self.model, self.rate = None, []

    @rule(really=once_in_a_while)
    def claim_another_process(self, really: bool) -> None:
        """As after a restart that kept the data: the state has another run id."""
        if not really:
            return
        key = redis_keys.admission_counters(self.tenant, PERIOD)
        self.valkey.run(self.valkey.redis.hset(key, "run", "another"))
        self.model = None

    @invariant()
    def reads_as_the_model_says(self) -> None:
        found = self.valkey.run(self.state.read(self.tenant, PERIOD, self.now))
        if self.model is None:
            assert found is None
            return
        held = self.model.held()
        for meter, state in enumerate(found.meters):
            limit = self.model.limits[meter]
            assert (state.used, state.held) == (self.model.base[meter], held[meter])
            assert state.limit == (None if limit < 0 else limit)
            if state.limit is not None and state.used + state.held <= state.limit:
                assert state.remaining is not None
                assert state.used + state.held + state.remaining == state.limit
        stored = self.valkey.run(self.valkey.redis.hgetall(redis_keys.admission_holds(self.tenant, PERIOD)))
        assert {id_.decode(): tuple(map(int, text.split(b",")[:3])) for id_, text in stored.items()} == {
            id_: hold.size for id_, hold in self.model.holds.items()
        }
        due = self.valkey.run(self.valkey.redis.zrange(redis_keys.admission_due(self.tenant, PERIOD), 0, -1))
        assert {id_.decode() for id_ in due} == set(self.model.holds)


def in_thread(work: Callable[[], None]) -> Coroutine[Any, Any, None]:
    """The state machine runs its own event loop, which needs a thread without a running one."""
    return asyncio.to_thread(work)


async def test_any_sequence_of_scripts_does_what_the_model_does() -> None:
    def machine() -> None:
        valkey = Valkey()
        Machine.valkey = valkey
        try:
            run_state_machine_as_test(
                Machine,
                settings=settings(
                    max_examples=150,
                    stateful_step_count=50,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            valkey.close()

    await in_thread(machine)


@pytest.fixture
async def valkey() -> AsyncIterator[ServerProcess]:
    async with await start_valkey() as server:
        yield server


@pytest.fixture
async def connection(valkey: ServerProcess) -> AsyncIterator[AdmissionConnection]:
    connection = AdmissionConnection(valkey.url)
    await connection.start()
    yield connection
    await connection.stop(1)


@pytest.fixture
def state(connection: AdmissionConnection) -> AdmissionState:
    return AdmissionState(connection)


def a_hold(tenant: str, size: HoldSize = HoldSize(1, 10, 1), **fields: Any) -> Hold:
    return Hold(tenant, new_id(), PERIOD, size, from_ms(NOW + 70_000), **fields)


async def admit(
    state: AdmissionState, hold: Hold, now_ms: int = NOW, rate_now_ms: int = 0, most_accepted: int = 0
) -> AdmitAnswer:
    return await state.admit(hold, now_ms=now_ms, rate_now_ms=rate_now_ms, most_accepted=most_accepted)


@pytest.mark.parametrize(
    ("limits", "most"),
    [((100, -1, -1), 100), ((-1, 1005, -1), 100), ((-1, -1, 57), 57), ((40, 300, 35), 30)],
)
async def test_three_hundred_at_once_take_what_there_is(
    valkey: ServerProcess, connection: AdmissionConnection, state: AdmissionState, limits: Amounts, most: int
) -> None:
    await install(state, "many", quota("many", NOTHING, limits, 0, 0))
    other = AdmissionConnection(valkey.url)
    await other.start()
    replicas = (state, AdmissionState(other))
    answers = await asyncio.gather(*(admit(replicas[i % 2], a_hold("many")) for i in range(300)))
    await other.stop(1)
    assert sorted(a.verdict for a in answers).count("admitted") == most
    assert {a.verdict for a in answers} == {"admitted", "quota_exceeded"}


async def test_the_window_is_sixty_seconds_exactly(state: AdmissionState) -> None:
    await install(state, "rate", quota("rate", NOTHING, (-1, -1, -1), 0, 0))

    async def verdict(at: int, subject: str = "user") -> str:
        return (await admit(state, a_hold("rate", subject=subject), rate_now_ms=NOW + at, most_accepted=2)).verdict

    assert [await verdict(at) for at in (0, 30_000, 30_001, 59_999)] == [
        "admitted", "admitted", "rate_limited", "rate_limited"
    ]  # fmt: skip
    assert await verdict(59_999, "somebody else") == "admitted"
    assert [await verdict(at) for at in (60_000, 60_001, 89_999, 90_000)] == [
        "admitted", "rate_limited", "rate_limited", "admitted"
    ]  # fmt: skip


async def test_nobody_is_told_to_wait_longer_than_the_window(state: AdmissionState) -> None:
    await install(state, "clocks", quota("clocks", NOTHING, (-1, -1, -1), 0, 0))
    assert (await admit(state, a_hold("clocks"), rate_now_ms=NOW, most_accepted=1)).verdict == "admitted"
    earlier = await admit(state, a_hold("clocks"), rate_now_ms=NOW - 5, most_accepted=1)
    assert (earlier.verdict, earlier.rate.frees_ms) == ("rate_limited", WINDOW)
    assert await state.count_failure("clocks", 1, NOW) == (True, WINDOW)
    assert await state.count_failure("clocks", 1, NOW - 5) == (False, WINDOW)


async def test_a_clock_that_was_wrong_does_not_slow_down_anybody_for_long(state: AdmissionState) -> None:
    await install(state, "stepped", quota("stepped", NOTHING, (-1, -1, -1), 0, 0))
    ahead = 3_600_000

    async def admitted(at: int) -> int:
        answers = [await admit(state, a_hold("stepped"), rate_now_ms=NOW + at, most_accepted=3) for _ in range(4)]
        return [answer.verdict for answer in answers].count("admitted")

    assert await admitted(ahead) == 3
    # With the clock corrected, entries an hour ahead do not count any more.
    assert [await admitted(at) for at in (0, 59_999, 60_000)] == [3, 0, 3]


async def test_replicas_with_different_clocks_share_one_rate(state: AdmissionState) -> None:
    await install(state, "skewed", quota("skewed", NOTHING, (-1, -1, -1), 0, 0))
    skews = (0, 70_000, -70_000, 3_600_000) * 3
    answers = [await admit(state, a_hold("skewed"), now_ms=NOW + skew, most_accepted=3) for skew in skews]
    assert [answer.verdict for answer in answers].count("admitted") == 3
    assert all(50_000 < answer.rate.frees_ms <= WINDOW for answer in answers)


async def test_what_a_redis_before_has_left_is_taken_away(state: AdmissionState, valkey: ServerProcess) -> None:
    await install(state, "left", quota("left", NOTHING, (-1, -1, -1), 0, 0))
    assert (await admit(state, a_hold("left"))).verdict == "admitted"
    async with Redis.from_url(valkey.url, decode_responses=True) as redis:
        await redis.hset(redis_keys.admission_counters("left", PERIOD), "run", "one before")
        assert await state.confirm("left", PERIOD, None, []) == "cold"
        assert [key async for key in redis.scan_iter(match="*left*")] == []


async def test_a_key_goes_back_to_who_has_it_by_the_records(state: AdmissionState) -> None:
    await install(state, "restored", quota("restored", NOTHING, (-1, -1, -1), 0, 0))
    key: dict[str, Any] = {"key_hash": "k", "body_hash": "b"}
    repeat = a_hold("restored", **key)
    assert (await admit(state, repeat)).verdict == "admitted"
    first, day = Claim(new_id(), "b"), timedelta(days=1)
    await state.restore_claim("restored", "k", repeat.hold_id, first, day)
    await state.release("restored", PERIOD, repeat.hold_id, key_hash="k")
    again = await admit(state, a_hold("restored", **key))
    assert (again.verdict, again.claim) == ("replay", Claim(first.upgrade_id, "b"))
    # A claim of another upgrade stays.
    await state.restore_claim("restored", "k", new_id(), Claim(new_id(), "b"), day)
    assert (await admit(state, a_hold("restored", **key))).claim == first


async def test_a_key_is_claimed_by_what_was_admitted_only(state: AdmissionState) -> None:
    await install(state, "keys", quota("keys", NOTHING, (1, -1, -1), 0, 0))
    key: dict[str, Any] = {"key_hash": "k", "body_hash": "b"}
    first = a_hold("keys", **key)
    assert (await admit(state, first)).verdict == "admitted"
    again = await admit(state, a_hold("keys", **key), most_accepted=1)
    assert (again.verdict, again.claim) == ("replay", Claim(first.hold_id, "b"))
    refused = await admit(state, a_hold("keys", key_hash="other", body_hash="b"))
    assert refused.verdict == "quota_exceeded"
    await state.release("keys", PERIOD, first.hold_id, key_hash="k")
    assert (await admit(state, a_hold("keys", **key))).verdict == "admitted"


async def test_a_slow_rebuild_installs_nothing_after_redis_was_emptied(
    valkey: ServerProcess, state: AdmissionState
) -> None:
    run_id, token = await state.begin_rebuild("slow", PERIOD, new_id())
    async with Redis.from_url(valkey.url) as redis:
        await redis.flushall()
    unlimited = quota("slow", NOTHING, (-1, -1, -1), 0, 0)
    assert await state.install(run_id, token, unlimited, []) == "lost"
    _, theirs = await state.begin_rebuild("slow", PERIOD, new_id())
    assert theirs != token
    assert await state.install(run_id, theirs, unlimited, []) == "installed"
    assert await state.install(run_id, theirs, unlimited, []) == "warm"


async def test_another_process_of_redis_makes_every_tenant_cold(
    valkey: ServerProcess, connection: AdmissionConnection, state: AdmissionState
) -> None:
    await install(state, "restart", quota("restart", NOTHING, (-1, -1, -1), 0, 0))
    before = connection.run_id
    await valkey.kill()
    async with await start_valkey(valkey.port):
        assert (await admit(state, a_hold("restart"))).verdict == "cold"
        assert connection.run_id != before
        run_id, age = await state.incarnation_age()
        assert run_id == connection.run_id
        assert age < 5


async def test_scripts_that_redis_forgot_are_loaded_again(valkey: ServerProcess, state: AdmissionState) -> None:
    await install(state, "scripts", quota("scripts", NOTHING, (-1, -1, -1), 0, 0))
    async with Redis.from_url(valkey.url) as redis:
        await redis.script_flush()
    assert (await admit(state, a_hold("scripts"))).verdict == "admitted"


async def test_large_amounts_stay_whole(state: AdmissionState) -> None:
    large = 4_000_000_000_000_000
    await install(state, "large", quota("large", (0, large, 0), (-1, 2 * large, -1), 0, 0))
    admitted = await admit(state, a_hold("large", size=HoldSize(1, large, 0)))
    assert admitted.verdict == "admitted"
    refused = await admit(state, a_hold("large", size=HoldSize(0, 1, 0)))
    assert refused.meter is not None
    assert (refused.meter.used, refused.meter.held) == (large, large)
