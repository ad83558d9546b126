"""Tests of a tenant's standing: its counters, and exactly the events that they lack, at every step of counting."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.usage.counting.batch_registry import RECENT
from services.usage.counting.count_batch import CountBatch
from services.usage.counting.increments import increments_of
from services.usage.counting.ledger_store import LedgerStore
from shared.storage.sqlite import SqliteDatabase
from tests.unit.usage_fixtures import ending, operation

TENANT, PERIOD = "tenant-a", "2026-11"
TOKENS = 15


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[LedgerStore]:
    database = SqliteDatabase(tmp_path / "usage.sqlite3")
    ledger = LedgerStore(database)
    await database.start()
    yield ledger
    await database.stop(2)


async def standing(ledger: LedgerStore, *event_ids: str) -> tuple[int, list[str]]:
    found = await ledger.standing(TENANT, PERIOD, event_ids)
    assert found is not None
    assert found.as_of == found.counters.version
    return found.counters.tokens, found.missing


async def test_an_event_is_in_the_counters_or_missing_at_every_step(ledger: LedgerStore) -> None:
    assert await standing(ledger, "a") == (0, ["a"])
    number = await ledger.registry.begin("one", 2e9)
    assert number is not None
    events = [operation("a")]
    await ledger.store(events, number)
    assert await standing(ledger, "a") == (0, ["a"])
    assert await ledger.registry.start_counting(number, "one", 2e9)
    assert await standing(ledger, "a") == (0, ["a"])
    await ledger.add(increments_of(events), number)
    # In the counters already, although its batch is still open.
    assert await ledger.missing(["a"]) == ["a"]
    assert await standing(ledger, "a") == (TOKENS, [])
    await ledger.registry.close(number)
    assert await standing(ledger, "a", "b") == (TOKENS, ["b"])


async def test_each_event_is_counted_or_missing_while_events_are_counted(ledger: LedgerStore) -> None:
    ids = [f"e{number}" for number in range(120)]
    counting = CountBatch(ledger, ledger.registry, owner="one", lease_seconds=5.0)
    asked = found = 0

    async def count() -> None:
        for at in range(0, len(ids), 3):
            await counting.count([*(operation(id_) for id_ in ids[at : at + 3]), ending(f"end-{at}", "original")])

    counted = asyncio.create_task(count())
    while not counted.done():
        asked += 1
        now = await ledger.standing(TENANT, PERIOD, ids)
        if now is not None:
            found += 1
            assert now.counters.tokens + TOKENS * len(now.missing) == TOKENS * len(ids)
    await counted
    assert found > asked / 10
    assert await standing(ledger, *ids) == (TOKENS * len(ids), [])


async def test_standing_as_of_an_earlier_version(
    ledger: LedgerStore,
) -> None:
    ids = [f"e{number}" for number in range(RECENT + 4)]
    counting = CountBatch(ledger, ledger.registry, owner="one", lease_seconds=5.0)
    for id_ in ids:
        await counting.count([operation(id_)])
    for as_of in range(4, len(ids) + 1):
        found = await ledger.standing(TENANT, PERIOD, ids, as_of)
        assert found is not None
        assert (found.as_of, found.missing) == (as_of, ids[as_of:])
    for unknown in (0, 3, len(ids) + 1):
        found = await ledger.standing(TENANT, PERIOD, ids, unknown)
        assert found is not None
        assert (found.as_of, found.missing) == (len(ids), [])
