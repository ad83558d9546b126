"""Tests of recounting the ledger while events are counted and pruned."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from services.usage.counting import batch_registry, ledger_store
from services.usage.counting.count_batch import CountingInterrupted
from services.usage.counting.ledger_store import COUNTERS, EVENTS, LedgerStore
from services.usage.counting.retention import Retention
from services.usage.reconciling import recount
from services.usage.reconciling.full_reconciliation import ReconcileReport
from services.usage.reconciling.recount import StoredLedger, check_ledger
from shared.contracts.contract import now_utc
from shared.storage.sqlite import SqliteDatabase
from tests.component.test_usage_ledger import Clock, Killed, Steps, Store
from tests.unit.usage_fixtures import TENANTS, ending, mixed_events, operation

LATER = now_utc() + timedelta(days=40)


class Traffic(Store):
    """A store with access to its collections."""

    def __init__(self, path: Path) -> None:
        super().__init__(SqliteDatabase(path / "usage.sqlite3"))
        self.counters = self.database.collection(COUNTERS)
        self.events = self.database.collection(EVENTS)


class Meanwhile:
    """A proxy for the ledger that runs `happens` before each page is read."""

    def __init__(self, ledger: LedgerStore, happens: Callable[[], Awaitable[object]]) -> None:
        self._ledger = ledger
        self._happens = happens

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._ledger, name)
        if not name.startswith("page_of"):
            return found

        async def page(after_id: str) -> Any:
            await self._happens()
            return await found(after_id)

        return page


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Traffic]:
    store = Traffic(tmp_path)
    await store.database.start()
    yield store
    await store.database.stop(5)


def steady(store: Store, batches: int = 1) -> Callable[[], Awaitable[None]]:
    """A function that counts some batches of both tenants."""
    counting, numbers = store.counting(Clock()), iter(range(10**6))

    async def count() -> None:
        for _ in range(batches):
            number = next(numbers)
            await counting.count([operation(f"t{number}-{tenant}", tenant_id=tenant) for tenant in TENANTS])

    return count


def under(store: Store, happens: Callable[[], Awaitable[object]]) -> StoredLedger:
    return cast(StoredLedger, Meanwhile(store.ledger, happens))


@pytest.mark.parametrize("batches", [1, batch_registry.RECENT + 3], ids=["a batch", "more than a counter remembers"])
async def test_tenants_that_change_constantly_are_compared(store: Traffic, batches: int) -> None:
    await store.counting(Clock()).count(mixed_events(300))
    found = await check_ledger(under(store, steady(store, batches)), attempts=1)
    assert (found.differences, found.uncompared, found.tenants) == ([], 0, 2)


async def test_a_difference_of_a_tenant_that_changes_constantly_is_found(store: Traffic) -> None:
    await store.counting(Clock()).count(mixed_events(300))
    await store.counters.update_one({"tenantId": "tenant-b", "period": "2026-11"}, {"$inc": {"embeddings": -2}})
    found = await check_ledger(under(store, steady(store)), attempts=1)
    assert [(d.tenant_id, d.where, d.meter, d.amount) for d in found.differences] == [
        ("tenant-b", "2026-11", "embeddings", -2)
    ]


async def test_an_outdated_counter_is_found_while_events_are_counted(store: Traffic) -> None:
    """The counter is consistent in itself: its list has exactly the batches of its amounts."""
    counting = store.counting(Clock())
    await counting.count([operation("e1")])
    old = await store.counters.find_one({"tenantId": "tenant-a"})
    assert old is not None
    await counting.count([operation("e2")])
    await store.counters.update_one({"_id": old.pop("_id")}, {"$set": old})
    found = await check_ledger(under(store, steady(store)), attempts=1)
    assert ("counter", "tokens", -15) in [(d.what, d.meter, d.amount) for d in found.differences]


async def test_a_deleted_counter_is_found(store: Traffic) -> None:
    await store.counting(Clock()).count([operation("e1"), operation("e2", tenant_id="tenant-b")])
    await store.counters.delete_many({"tenantId": "tenant-a"})
    found = await check_ledger(under(store, steady_of(store, "tenant-b")), attempts=1)
    assert ("tenant-a", "counter", "tokens", -15) in [
        (d.tenant_id, d.what, d.meter, d.amount) for d in found.differences
    ]
    assert {d.tenant_id for d in found.differences} == {"tenant-a"}


def steady_of(store: Store, tenant: str) -> Callable[[], Awaitable[object]]:
    counting, numbers = store.counting(Clock()), iter(range(10**6))
    return lambda: counting.count([operation(f"t{next(numbers)}", tenant_id=tenant)])


async def test_uncounted_events_hide_no_difference(store: Traffic) -> None:
    await store.counting(Clock()).count([operation("e1"), ending("e2")])
    number = await store.registry.begin("slow", 0.0)
    assert number is not None
    await store.ledger.store([operation("e3")], number)
    await store.counters.update_one({"tenantId": "tenant-a"}, {"$inc": {"tokens": 4}})
    found = await check_ledger(store.ledger, attempts=1)
    assert (found.uncounted, found.uncompared) == (1, 0)
    assert [(d.what, d.meter, d.amount) for d in found.differences] == [("counter", "tokens", 4)]


async def test_events_counted_a_little_later_are_not_reported(store: Traffic) -> None:
    """Even if other events are uncounted at every check."""
    clock, numbers = Clock(), iter(range(10**6))

    async def leave_one() -> None:
        number = await store.registry.begin("gone", 0.0)
        assert number is not None
        await store.ledger.store([operation(f"left-{next(numbers)}")], number)

    async def finish_and_leave_one(seconds: float) -> None:
        await store.counting(clock).resume()
        await leave_one()

    await leave_one()
    found = await check_ledger(store.ledger, attempts=2, sleep=finish_and_leave_one)
    assert (found.clean, found.uncounted) == (True, 0)


@pytest.mark.parametrize("seed", range(4))
async def test_recounts_during_crashes_find_no_difference(
    store: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Leases are very short; batches are left half counted, taken over and given up while the ledger is recounted."""
    monkeypatch.setattr(batch_registry, "WINDOW", 3)
    monkeypatch.setattr(ledger_store, "RECENT", 6)
    events, clock, done = mixed_events(400, seed), Clock(), asyncio.Event()

    async def process(number: int) -> None:
        chance = random.Random(seed * 10 + number)
        for at in range(0, len(events), 20):
            steps = Steps(chance.randint(0, 8), chance.random() < 0.5)
            for attempt in range(50):
                clock.now += chance.random()
                dying = steps if attempt == 0 else None
                counting = store.counting(clock, f"{number}-{at}-{attempt}", dying, lease=chance.choice((0.0, 1.0)))
                try:
                    await counting.resume()
                    await counting.count(events[at : at + 20])
                except (Killed, CountingInterrupted):
                    continue
                break

    async def read() -> int:
        readings = 0
        while not done.is_set():
            found = await check_ledger(store.ledger, attempts=1)
            assert (found.differences, found.uncompared) == ([], 0)
            readings += 1
        return readings

    reading = asyncio.create_task(read())
    await asyncio.gather(process(0), process(1))
    done.set()
    assert await reading > 3


async def test_pruning_during_every_attempt_is_reported(store: Traffic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events pruned while the ledger is read may be in both the sealed sums and the events, or in neither."""
    monkeypatch.setattr("services.usage.counting.ledger_store.STEP_EVENTS", 2)
    await store.counting(Clock()).count(mixed_events(300))
    retention = Retention(store.ledger.sealed, timedelta(days=35))
    pauses: list[float] = []

    async def asleep(seconds: float) -> None:
        pauses.append(seconds)

    async def removes() -> None:
        await retention.prune(LATER, most_steps=2)

    found = await check_ledger(under(store, removes), attempts=3, sleep=asleep)
    assert (found.uncompared, found.differences, len(pauses)) == (2, [], 2)
    reported = ReconcileReport(found, None, None, {})
    assert (reported.clean, reported.complete) == (True, False)
    assert reported.to_json()["moving"] == 2
    not_compared, verdict = reported.to_text().splitlines()
    assert not_compared.startswith(
        "2 tenants were not compared: old events were removed during each of 3 readings, for"
    )
    assert verdict.endswith("no difference in what was compared")


async def test_no_events_are_pruned_during_a_recount(store: Traffic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recount, "_PAUSE_PRUNING_FOR", timedelta(days=60))
    await store.counting(Clock()).count(mixed_events(300))
    retention = Retention(store.ledger.sealed, timedelta(days=35))
    found = await check_ledger(under(store, lambda: retention.prune(LATER)), attempts=1)
    assert (found.differences, found.uncompared, found.events) == ([], 0, 300)
