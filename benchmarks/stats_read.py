"""Measures how fast the gateway returns the statistics of a tenant with a million events."""

import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from benchmarks.backends import EMBEDDED, running
from benchmarks.gateway_accept import gateway_process
from benchmarks.pairs import Measured, Row, percentile
from benchmarks.usage_events import EVENTS_OF_AN_UPGRADE, upgrade
from deploy.local.servers import start_valkey
from services.gateway.identity.api_keys import DEMO_TENANT_ID
from services.usage.counting.count_batch import CountBatch
from services.usage.counting.ledger_store import LedgerStore
from shared.contracts.contract import new_id
from shared.messaging.topics import create_topics
from shared.storage.sqlite import SqliteDatabase
from tests.component.gateway_world import API_KEY, TOKEN, Siblings
from tests.component.test_usage_service import usage_process
from tests.conftest import eventually

EVENTS = 1_000_000
USERS = 200
DAYS = 30
LIMIT_MS = 50.0
_BATCH = 2000
_ROUNDS = 5
_READS = 40
_QUERIES = {
    "month": "from=2026-11-01&to=2026-12-01",
    "month by day": "from=2026-11-01&to=2026-12-01&groupBy=day",
    "month by component": "from=2026-11-01&to=2026-12-01&groupBy=component",
    "month by user": "from=2026-11-01&to=2026-12-01&groupBy=user",
    "28 days by user": "from=2026-11-02&to=2026-11-30&groupBy=user",
    "half a month by user": "from=2026-11-01&to=2026-11-16&groupBy=user",
    "20 days by user": "from=2026-11-04&to=2026-11-24&groupBy=user",
}
READ = Row(
    "stats-read",
    "ms, p95",
    f"A is `GET /api/stats` at the gateway, one client, of a tenant with {EVENTS:,} events of {USERS} users in {DAYS} "
    f"days, counted by the usage service's own code on SQLite; the worst of seven ranges and groupings. B is the "
    f"limit, {LIMIT_MS:g} ms.",
    goal=1.0,
    better="less",
)
ROWS = (READ,)


async def measure(kind: str, chosen: Sequence[Row]) -> list[Measured]:
    """Measures with the stores of the embedded stack only; the broker does not matter."""
    if kind != EMBEDDED:
        return []
    with tempfile.TemporaryDirectory(prefix="bench-stats-") as folder:
        per_second = await fill(Path(folder) / "usage.sqlite3")
        siblings = Siblings()
        async with siblings.serving(), running(kind) as broker, await start_valkey() as valkey:
            await create_topics(broker.settings())
            async with usage_process(broker.url, Path(folder), token=TOKEN) as usage:
                await eventually(usage.is_ready, 60)
                changes = {"USAGE_URL": str(usage.http.base_url)}
                async with gateway_process(broker, valkey.url, siblings, Path(folder), **changes) as gateway:
                    rounds = [await _round(gateway.url) for _ in range(_ROUNDS + 1)][1:]
    worst = [max(p95 for _, p95 in one.values()) / LIMIT_MS for one in rounds]
    middle = {name: sorted(one[name] for one in rounds)[_ROUNDS // 2] for name in _QUERIES}
    queries = "; ".join(f"{name} p50 {p50:.0f}, p95 {p95:.0f} ms" for name, (p50, p95) in middle.items())
    absolute = f"{queries}; counted at {per_second:,.0f} events/s"
    return [Measured(row.on(kind), row, tuple(worst), absolute) for row in chosen]


async def fill(file: Path) -> float:
    """Counts a million events of the demo tenant, day by day; returns the events per second."""
    database = SqliteDatabase(file)
    ledger = LedgerStore(database)
    counting = CountBatch(ledger, ledger.registry, owner=new_id(), lease_seconds=60.0)
    chance = random.Random(11)
    await database.start()
    try:
        spent = 0.0
        for number in range(EVENTS // _BATCH):
            day = f"2026-11-{1 + number * DAYS // (EVENTS // _BATCH):02d}"
            users = (f"u_{chance.randrange(USERS):032d}" for _ in range(_BATCH // EVENTS_OF_AN_UPGRADE))
            events = [event for user in users for event in upgrade(chance, DEMO_TENANT_ID, user, day)]
            began = time.perf_counter()
            await counting.count(events)
            spent += time.perf_counter() - began
        return EVENTS / spent
    finally:
        await database.stop(10)


async def _round(url: str) -> dict[str, tuple[float, float]]:
    """Runs the queries in turns; returns p50 and p95 of each in ms."""
    taken: dict[str, list[float]] = {name: [] for name in _QUERIES}
    async with httpx.AsyncClient(base_url=url, headers={"X-API-Key": API_KEY}, timeout=30) as client:
        for _ in range(_READS):
            for name, query in _QUERIES.items():
                began = time.perf_counter()
                answer = await client.get(f"/api/stats?{query}")
                taken[name].append((time.perf_counter() - began) * 1000)
                assert answer.status_code == 200, answer.text
    return {name: (percentile(times, 50), percentile(times, 95)) for name, times in taken.items()}
