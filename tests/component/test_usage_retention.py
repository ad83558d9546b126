"""Tests of pruning on a real store: counters stay unchanged, and the ledger can still be recounted."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from services.usage.counting.count_batch import CountBatch
from services.usage.counting.ledger_store import COUNTERS, LedgerStore
from services.usage.counting.retention import PrunableLedger, Retention
from services.usage.counting.stats import tenant_stats
from services.usage.reconciling.recount import check_ledger
from shared.contracts.contract import now_utc
from shared.storage.sqlite import SqliteDatabase
from tests.component.test_usage_ledger import Killed, Killing, Steps
from tests.unit.usage_fixtures import mixed_events

KEEP = timedelta(days=35)
LATER = now_utc() + KEEP + timedelta(days=2)


class Ledger:
    def __init__(self, path: Path) -> None:
        self.database = SqliteDatabase(path / "usage.sqlite3")
        self.store = LedgerStore(self.database)
        self.counters = self.database.collection(COUNTERS)
        self.counting = CountBatch(self.store, self.store.registry, owner="one", lease_seconds=5.0)

    async def prune(self, steps: Steps | None = None) -> int:
        sealed: PrunableLedger = self.store.sealed
        if steps is not None:
            sealed = cast(PrunableLedger, Killing(sealed, steps))
        return await Retention(sealed, KEEP).prune(LATER)

    async def left(self) -> int:
        return len(await self.store.page_of_events(""))

    async def numbers(self) -> list[Any]:
        return [*await self.store.page_of_counters(""), *await self.store.page_of_rollups("")]


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    ledger = Ledger(tmp_path)
    await ledger.database.start()
    yield ledger
    await ledger.database.stop(5)


async def test_pruning_leaves_counters_and_rollups_unchanged(ledger: Ledger) -> None:
    await ledger.counting.count(mixed_events(1_200))
    numbers = await ledger.numbers()
    assert await ledger.prune() == 1_200
    assert await ledger.left() == 0
    assert await ledger.numbers() == numbers
    found = await check_ledger(ledger.store, attempts=1)
    assert (found.differences, found.uncounted, found.uncompared, found.events) == ([], 0, 0, 0)


async def test_recent_events_stay(ledger: Ledger) -> None:
    await ledger.counting.count(mixed_events(50))
    soon = now_utc() + KEEP
    assert await Retention(ledger.store.sealed, KEEP).prune(soon) == 0
    assert await ledger.left() == 50


async def test_uncounted_events_stay(ledger: Ledger) -> None:
    number = await ledger.store.registry.begin("slow", 0.0)
    assert number is not None
    await ledger.store.store(mixed_events(5, seed=3), number)
    await ledger.counting.count(mixed_events(20))
    assert await ledger.prune() == 20
    assert await ledger.left() == 5
    assert await ledger.counting.resume() == 1
    assert (await check_ledger(ledger.store, attempts=1)).clean


@pytest.mark.parametrize("kill_before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("kill_at", range(16))
async def test_killed_at_each_step(ledger: Ledger, kill_at: int, kill_before: bool) -> None:
    await ledger.counting.count(mixed_events(700))
    numbers = await ledger.numbers()
    with pytest.raises(Killed):
        await ledger.prune(Steps(kill_at, kill_before))
    halfway = await check_ledger(ledger.store, attempts=1)
    assert (halfway.differences, halfway.uncompared) == ([], 0)
    await ledger.prune()
    assert await ledger.left() == 0
    assert await ledger.numbers() == numbers
    assert (await check_ledger(ledger.store, attempts=1)).clean


async def test_two_processes_prune_at_once(ledger: Ledger) -> None:
    """The second process takes every step after the first has already done it."""
    await ledger.counting.count(mixed_events(900))

    class Late(Killing):
        def __getattr__(self, name: str) -> Any:
            method = super().__getattr__(name)

            async def step(*arguments: Any) -> Any:
                answer = await method(*arguments)
                if name in ("current_step", "events_by_id", "add_to_sealed_sums"):
                    await ledger.prune()
                return answer

            return step

    late = cast(PrunableLedger, Late(ledger.store.sealed, Steps(10**6, kill_before=True)))
    await Retention(late, KEEP).prune(LATER)
    assert await ledger.left() == 0
    assert (await check_ledger(ledger.store, attempts=1)).clean


async def test_a_difference_is_found_after_pruning(ledger: Ledger) -> None:
    await ledger.counting.count(mixed_events(100))
    await ledger.prune()
    await ledger.counters.update_one({"tenantId": "tenant-a", "period": "2026-11"}, {"$inc": {"tokens": -4}})
    found = await check_ledger(ledger.store, attempts=1)
    assert [(d.tenant_id, d.where, d.meter, d.amount) for d in found.differences] == [
        ("tenant-a", "2026-11", "tokens", -4)
    ]


async def test_no_step_begins_while_pruning_is_paused(ledger: Ledger) -> None:
    await ledger.counting.count(mixed_events(10))
    await ledger.store.sealed.pause(LATER + timedelta(minutes=1))
    assert await ledger.prune() == 0
    await ledger.store.sealed.pause(LATER)
    assert await ledger.prune() == 10


async def test_pruning_leaves_stats_unchanged(ledger: Ledger) -> None:
    await ledger.counting.count(mixed_events(300))
    day = now_utc().date().replace(year=2026, month=11, day=1)
    before = await tenant_stats(ledger.store, "tenant-a", day, day.replace(day=29), "user")
    await ledger.prune()
    assert await tenant_stats(ledger.store, "tenant-a", day, day.replace(day=29), "user") == before
