"""Tests that a real store counts every event exactly once, despite crashes, repeats and overlapping processes."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from services.usage.counting import batch_registry, ledger_store
from services.usage.counting.count_batch import BatchRegistry, CountBatch, CountingInterrupted, Ledger
from services.usage.counting.increments import increments_of
from services.usage.counting.ledger_event import LedgerEvent
from services.usage.counting.ledger_store import LedgerStore
from services.usage.reconciling.recount import check_ledger
from shared.storage.documents import Collection, Database, StorageUnavailable
from shared.storage.sqlite import SqliteDatabase
from tests.unit.usage_fixtures import TENANTS, ending, mixed_events, operation

PERIODS = ("2026-10", "2026-11")


class Killed(BaseException):
    """Simulates the end of a process: nothing in the code under test may catch it."""


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += 1
        await asyncio.sleep(0)


class Killing:
    """A proxy that raises Killed before or after the n-th call."""

    def __init__(self, wrapped: object, steps: "Steps") -> None:
        self._wrapped = wrapped
        self._steps = steps

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._wrapped, name)

        async def step(*arguments: Any) -> Any:
            self._steps.before()
            answer = await method(*arguments)
            self._steps.after()
            return answer

        return step


class Steps:
    def __init__(self, kill_at: int, kill_before: bool) -> None:
        self._left = kill_at
        self._kill_before = kill_before
        self.killed = False

    def before(self) -> None:
        if self.killed or (self._left == 0 and self._kill_before):
            self.killed = True
            raise Killed
        self._left -= 1

    def after(self) -> None:
        if self.killed or (self._left < 0 and not self._kill_before):
            self.killed = True
            raise Killed


class Store:
    """One process's view of a shared store."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.ledger = LedgerStore(self.database)
        self.registry = self.ledger.registry

    def counting(self, clock: Clock, owner: str = "one", steps: Steps | None = None, lease: float = 5.0) -> CountBatch:
        ledger, registry = self.ledger, self.registry
        return CountBatch(
            ledger if steps is None else cast(Ledger, Killing(ledger, steps)),
            registry if steps is None else cast(BatchRegistry, Killing(registry, steps)),
            owner,
            lease,
            clock,
            clock.sleep,
        )


@pytest.fixture
def open_usage_database(tmp_path: Path) -> Callable[[], Database]:
    """Opens one more connection to the same store. The cluster suite has its own."""
    return lambda: SqliteDatabase(tmp_path / "usage.sqlite3")


@pytest.fixture
async def store(open_usage_database: Callable[[], Database]) -> AsyncIterator[Store]:
    store = Store(open_usage_database())
    await store.database.start()
    yield store
    await store.database.stop(5)


async def assert_counted_once(store: Store, events: Sequence[LedgerEvent]) -> None:
    once = list({event.event_id: event for event in events}.values())
    expected = increments_of(once)
    for key, amounts in expected.counters.items():
        counters = await store.ledger.counters(key.tenant_id, key.period)
        assert counters.upgrades == amounts.get("upgrades", 0)
        assert counters.tokens == amounts.get("tokens", 0)
        assert counters.embeddings == amounts.get("embeddings", 0)
        assert counters.cost_nano_usd == amounts.get("costNanoUsd", 0)
    assert await store.ledger.missing([event.event_id for event in once]) == []
    found = await check_ledger(store.ledger, attempts=1)
    assert (found.differences, found.uncounted, found.events) == ([], 0, len(once))
    assert await store.registry.open_batches() == []


async def test_a_batch_is_counted(store: Store) -> None:
    events = mixed_events(200)
    assert await store.counting(Clock()).count(events) == 200
    await assert_counted_once(store, events)


async def test_duplicates_within_a_batch_and_across_batches(store: Store) -> None:
    events = mixed_events(100)
    counting = store.counting(Clock())
    assert await counting.count([*events[:60], *events[:60]]) == 60
    shuffled = events[::-1]
    assert await counting.count(shuffled) == 40
    assert await counting.count(shuffled) == 0
    await assert_counted_once(store, events)


async def test_an_empty_batch_counts_nothing(store: Store) -> None:
    assert await store.counting(Clock()).count([]) == 0
    counters = await store.ledger.counters("tenant-a", "2026-11")
    assert (counters.upgrades, counters.version) == (0, 0)


async def test_the_version_rises_with_every_batch(store: Store) -> None:
    counting = store.counting(Clock())
    for number in range(3):
        await counting.count([ending(f"e{number}", "failed")])
    assert (await store.ledger.counters("tenant-a", "2026-11")).version == 3


async def test_missing_returns_unknown_and_uncounted_events(store: Store) -> None:
    number = await store.registry.begin("slow", 0.0)
    assert number is not None
    await store.ledger.store([operation("stored")], number)
    await store.counting(Clock()).count([operation("counted")])
    assert await store.ledger.missing(["never", "stored", "counted"]) == ["never", "stored"]


@pytest.mark.parametrize("again", [False, True], ids=["not delivered again", "delivered again"])
@pytest.mark.parametrize("kill_before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("kill_at", range(6))
async def test_killed_at_each_step_and_started_again(
    store: Store, kill_at: int, kill_before: bool, again: bool
) -> None:
    """The steps are begin, store, start_counting, add, close; a sixth step does not exist."""
    events = mixed_events(60)
    clock = Clock()
    await store.counting(clock).count(mixed_events(20, seed=9))
    killed = False
    try:
        await store.counting(clock, "killed", Steps(kill_at, kill_before)).count(events)
    except Killed:
        killed = True
    assert killed == (kill_at < 5)
    clock.now += 6
    restarted = store.counting(clock, "restarted")
    await restarted.resume()
    stored = kill_at > 1 or (kill_at == 1 and not kill_before)
    if again or not stored:
        assert await restarted.count(events) == (0 if stored else 60)
    await assert_counted_once(store, [*events, *mixed_events(20, seed=9)])


@pytest.mark.parametrize("kill_before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("kill_at", range(16))
async def test_killed_while_one_batch_is_counted_and_the_next_is_stored(
    store: Store, kill_at: int, kill_before: bool
) -> None:
    """Three batches of five steps, in the order in which they run; a sixteenth step does not exist."""
    events = mixed_events(90)
    clock = Clock()
    steps = Steps(kill_at, kill_before)
    counting = store.counting(clock, "killed", steps)
    try:
        for start in range(0, 90, 30):
            batch = await counting.count_in_background(events[start : start + 30])
        await batch.done
    except Killed:
        pass
    assert steps.killed == (kill_at < 15)
    clock.now += 6
    restarted = store.counting(clock, "restarted")
    await restarted.resume()
    await restarted.count(events)
    await assert_counted_once(store, events)


async def test_the_next_batch_is_stored_while_one_is_counted_and_then_waits(store: Store) -> None:
    going_on, second_stored = asyncio.Event(), asyncio.Event()

    class Slow(Killing):
        def __getattr__(self, name: str) -> Callable[..., Any]:
            method = super().__getattr__(name)

            async def step(*arguments: Any) -> Any:
                if name == "add":
                    await going_on.wait()
                answer = await method(*arguments)
                if name == "store" and arguments[0][0].event_id == "e2":
                    second_stored.set()
                return answer

            return step

    counting = CountBatch(cast(Ledger, Slow(store.ledger, Steps(100, True))), store.registry, "one", 5.0)
    first = await counting.count_in_background([operation("e1")])
    second = asyncio.create_task(counting.count_in_background([operation("e2")]))
    await asyncio.wait_for(second_stored.wait(), 10)
    assert not first.done.done()
    assert not second.done()
    assert await store.ledger.missing(["e1", "e2"]) == ["e1", "e2"]
    going_on.set()
    await (await second).done
    assert first.done.done()
    await assert_counted_once(store, [operation("e1"), operation("e2")])


async def test_a_stored_batch_that_cannot_be_counted_is_left_to_resume(store: Store) -> None:
    class Failing(Killing):
        def __getattr__(self, name: str) -> Callable[..., Any]:
            if name == "add":
                return self._refuse
            return super().__getattr__(name)

        async def _refuse(self, *_: Any) -> None:
            raise StorageUnavailable("full")

    interrupted: list[tuple[int, Exception]] = []
    clock = Clock()
    ledger = cast(Ledger, Failing(store.ledger, Steps(100, True)))
    counting = CountBatch(
        ledger,
        store.registry,
        "one",
        5.0,
        clock,
        on_interrupted=lambda number, error: interrupted.append((number, error)),
    )
    batch = await counting.count_in_background([operation("e1")])
    await batch.done
    assert batch.new == 1
    assert [(number, type(error)) for number, error in interrupted] == [(1, StorageUnavailable)]
    assert await store.ledger.missing(["e1"]) == ["e1"]
    clock.now += 6
    assert await store.counting(clock, "other").resume() == 1
    await assert_counted_once(store, [operation("e1")])


async def test_stop_waits_for_the_batch_in_the_background(store: Store) -> None:
    counting = store.counting(Clock())
    events = mixed_events(50)
    await counting.count_in_background(events)
    await counting.stop(5)
    await assert_counted_once(store, events)


@pytest.mark.parametrize("kill_at", range(5))
async def test_killed_while_the_counters_are_raised(
    store: Store, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    """Some counters and rollups have the batch, some do not."""

    async def dying(collection: Collection, increments: Sequence[ledger_store.DocumentIncrement], number: int) -> None:
        for one in increments[: kill_at * 10]:
            await original(collection, [one], number)
        raise Killed

    original = ledger_store._add_batch
    clock = Clock()
    events = mixed_events(120)
    with monkeypatch.context() as patched:
        patched.setattr(ledger_store, "_add_batch", dying)
        with pytest.raises(Killed):
            await store.counting(clock, "killed").count(events)
    clock.now += 6
    assert await store.counting(clock, "restarted").resume() == 1
    await assert_counted_once(store, events)


@pytest.mark.parametrize("kill_at", range(10))
async def test_killed_while_resuming_a_killed_batch(store: Store, kill_at: int) -> None:
    events = mixed_events(60)
    clock = Clock()
    with pytest.raises(Killed):
        await store.counting(clock, "first", Steps(1, kill_before=False)).count(events)
    for owner in ("second", "third"):
        clock.now += 6
        try:
            await store.counting(clock, owner, Steps(kill_at, kill_before=False)).resume()
        except Killed:
            continue
    clock.now += 6
    last = store.counting(clock, "last")
    await last.resume()
    clock.now += 6
    await last.resume()
    await assert_counted_once(store, events)


async def test_a_batch_is_taken_over_only_after_its_lease(store: Store) -> None:
    clock = Clock()
    with pytest.raises(Killed):
        await store.counting(clock, "killed", Steps(3, kill_before=True)).count([operation("e1")])
    other = store.counting(clock, "other")
    assert await other.resume() == 0
    assert await store.ledger.missing(["e1"]) == ["e1"]
    clock.now += 6
    assert await other.resume() == 1
    assert await store.ledger.missing(["e1"]) == []


async def test_an_owner_suspended_beyond_its_lease_counts_nothing_twice(store: Store) -> None:
    """It continues after another process has given up its batch, counted its events and filled the counters' lists."""
    clock = Clock()
    events = mixed_events(50)

    class Sleeping(Killing):
        def __getattr__(self, name: str) -> Callable[..., Any]:
            method = super().__getattr__(name)

            async def step(*arguments: Any) -> Any:
                if name in ("store", "add"):
                    clock.now += 6
                    await store.counting(clock, "other").resume()
                    for number in range(3):
                        await store.counting(clock, "other").count([operation(f"{name}-{number}")])
                return await method(*arguments)

            return step

    steps = Steps(99, kill_before=True)
    sleepy = CountBatch(cast(Ledger, Sleeping(store.ledger, steps)), store.registry, "sleepy", 5.0, clock)
    with pytest.raises(CountingInterrupted):
        await sleepy.count(events)
    clock.now += 6
    await store.counting(clock, "other").resume()
    others = [operation(f"store-{number}") for number in range(3)]
    await assert_counted_once(store, [*events, *others])


async def test_a_late_repeat_of_a_forgotten_batch_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_registry, "WINDOW", 3)
    monkeypatch.setattr(ledger_store, "RECENT", 6)
    clock = Clock()
    counting = store.counting(clock)
    events = [operation(f"e{number}") for number in range(20)]
    for event in events:
        await counting.count([event])
    for number in range(1, 21):
        await store.ledger.add(increments_of([events[number - 1]]), number)
    await assert_counted_once(store, events)


async def test_no_batch_begins_a_window_ahead_of_an_unfinished_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_registry, "WINDOW", 3)
    clock = Clock()
    for _ in range(3):
        assert await store.registry.begin("stuck", clock.now + 5) is not None
    assert await store.registry.begin("other", clock.now + 5) is None
    assert await store.counting(clock, "other").count([operation("e1")]) == 1
    await assert_counted_once(store, [operation("e1")])


async def test_a_window_that_stays_full_interrupts_counting(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_registry, "WINDOW", 1)
    clock = Clock()
    await store.registry.begin("stuck", clock.now + 3600)
    with pytest.raises(CountingInterrupted):
        await store.counting(clock, "other").count([operation("e1")])


@pytest.mark.parametrize("seed", [0, 2, 4])
async def test_overlapping_processes_that_crash_count_every_event_once(
    store: Store, open_usage_database: Callable[[], Database], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Four processes on two connections: the same events in different orders, very short leases, a small window."""
    monkeypatch.setattr(batch_registry, "WINDOW", 4)
    monkeypatch.setattr(ledger_store, "RECENT", 8)
    second = Store(open_usage_database())
    await second.database.start()
    events = mixed_events(240, seed)
    clock = Clock()

    async def process(number: int) -> None:
        chance = random.Random(seed * 10 + number)
        shuffled = chance.sample(events, len(events))
        shared = store if number % 2 else second
        for at in range(0, len(shuffled), 40):
            for attempt in range(50):
                steps = Steps(chance.randint(0, 14), chance.random() < 0.5) if attempt < 2 else None
                clock.now += chance.random()
                counting = shared.counting(clock, f"{number}-{at}-{attempt}", steps, lease=chance.choice((0.0, 1.0)))
                try:
                    await counting.resume()
                    await counting.count(shuffled[at : at + 40])
                except (Killed, CountingInterrupted):
                    continue
                break

    try:
        await asyncio.gather(*(process(number) for number in range(4)))
        last = store.counting(clock, "last")
        for _ in range(3):
            clock.now += 10
            await last.resume()
        await last.count(events)
        await assert_counted_once(store, events)
    finally:
        await second.database.stop(5)


async def test_tenants_and_months_are_counted_separately(store: Store) -> None:
    await store.counting(Clock()).count(mixed_events(100))
    seen = [await store.ledger.counters(tenant, period) for tenant in TENANTS for period in PERIODS]
    assert len({counters.tokens for counters in seen}) == 4
    assert (await store.ledger.counters("tenant-c", "2026-11")).tokens == 0
