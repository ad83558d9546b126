"""Tests of the end of a month, with a moved clock: usage belongs to the month in which its upgrade was accepted."""

import random
from collections.abc import AsyncIterator, Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from services.usage.counting import routes as routes_module
from services.usage.counting.count_batch import CountBatch
from services.usage.counting.handlers import to_ledger_event
from services.usage.counting.increments import CounterKey
from services.usage.counting.ledger_event import LedgerEvent
from services.usage.counting.ledger_store import LedgerStore
from services.usage.counting.routes import usage_routes
from services.usage.plans import routes as plan_routes_module
from services.usage.plans.plans import PLANS, PlanStore
from services.usage.plans.routes import plan_routes
from services.usage.reconciling.recount import check_ledger
from shared.contracts.internal_http import INTERNAL_TOKEN_HEADER
from shared.contracts.topics import COMPLETED, USAGE_RECORDED
from shared.contracts.upgrade_results import UpgradeStatus
from shared.contracts.usage import UsageRecorded
from shared.messaging.cloudevents import decode, encode
from shared.service.http import internal_app
from shared.service.settings import ObservabilitySettings
from shared.service.telemetry import Telemetry
from shared.storage.sqlite import SqliteDatabase
from tests.unit.test_usage_rules import completed

LAST_SECOND = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)
NEXT_MONTH = datetime(2026, 12, 1, 0, 0, 4, tzinfo=UTC)
TENANT = "tenant-a"


async def announce_nothing(keys: Collection[CounterKey]) -> None: ...


class Usage:
    def __init__(self, path: Path) -> None:
        self.now = LAST_SECOND
        self.database = SqliteDatabase(path / "usage.sqlite3")
        self.ledger = LedgerStore(self.database)
        self.counting = CountBatch(self.ledger, self.ledger.registry, owner="one", lease_seconds=5.0)
        plans = PlanStore(self.database.collection(PLANS))
        app = internal_app(
            Telemetry("usage", ObservabilitySettings()),
            internal_token="t",
            routers=[usage_routes(self.ledger), plan_routes(self.ledger, plans, announce_nothing)],
        )
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://usage", headers={INTERNAL_TOKEN_HEADER: "t"}
        )

    def clock(self) -> datetime:
        return self.now

    async def used(self, period: str) -> tuple[int, int]:
        """Upgrades and tokens by the quota route."""
        answer = await self.http.get(f"/internal/tenants/{TENANT}/quota?period={period}")
        counters = answer.json()["counters"]
        return counters["upgrades"], counters["tokens"]


@pytest.fixture
async def usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Usage]:
    usage = Usage(tmp_path)
    monkeypatch.setattr(plan_routes_module, "now_utc", usage.clock)
    monkeypatch.setattr(routes_module, "now_utc", usage.clock)
    await usage.database.start()
    yield usage
    await usage.http.aclose()
    await usage.database.stop(5)


def operation(event_id: str, period: str, occurred_at: datetime, tokens: int = 10) -> LedgerEvent:
    event = UsageRecorded(
        event_id=event_id,
        tenant_id=TENANT,
        user_ref="u_1",
        upgrade_id="upgrade-1",
        component="upgrader",
        operation="rewrite",
        tokens_in=tokens,
        period=period,
        occurred_at=occurred_at,
    )
    value, headers = encode(USAGE_RECORDED, event, source="test", event_id=event_id)
    return to_ledger_event(decode(USAGE_RECORDED, value, headers), LAST_SECOND - timedelta(days=35))


def end(event_id: str, period: str, occurred_at: datetime) -> LedgerEvent:
    event = completed(UpgradeStatus.UPGRADED, tenant_id=TENANT, period=period, occurred_at=occurred_at)
    value, headers = encode(COMPLETED, event, source="test", event_id=event_id)
    return to_ledger_event(decode(COMPLETED, value, headers), LAST_SECOND - timedelta(days=35))


async def test_an_upgrade_across_the_month_end_counts_once_in_its_own_month(usage: Usage) -> None:
    await usage.counting.count([operation("o1", "2026-11", LAST_SECOND)])
    usage.now = NEXT_MONTH
    assert await usage.used("2026-12") == (0, 0)
    await usage.counting.count([operation("o2", "2026-11", NEXT_MONTH, 7), end("e1", "2026-11", NEXT_MONTH)])
    await usage.counting.count([end("e1", "2026-11", NEXT_MONTH), operation("o2", "2026-11", NEXT_MONTH, 7)])
    assert await usage.used("2026-12") == (0, 0)
    assert await usage.used("2026-11") == (1, 17)
    await usage.counting.count([operation("o3", "2026-12", NEXT_MONTH, 2), end("e2", "2026-12", NEXT_MONTH)])
    assert await usage.used("2026-12") == (1, 2)
    assert await usage.used("2026-11") == (1, 17)


async def test_the_days_of_both_months_add_up_to_their_counters(usage: Usage) -> None:
    usage.now = NEXT_MONTH
    events = [operation("o1", "2026-11", LAST_SECOND), operation("o2", "2026-11", NEXT_MONTH, 7)]
    events += [operation("o3", "2026-12", NEXT_MONTH, 2), operation("o4", "2026-12", LAST_SECOND, 3)]
    await usage.counting.count(events)
    november = (await usage.http.get(f"/internal/tenants/{TENANT}/stats?from=2026-11-01&to=2026-12-01")).json()
    december = (await usage.http.get(f"/internal/tenants/{TENANT}/stats")).json()
    assert (december["from"], december["to"]) == ("2026-12-01", "2027-01-01")
    assert (november["totals"]["tokensIn"], december["totals"]["tokensIn"]) == (17, 5)


async def test_events_of_two_months_twice_and_in_any_order(usage: Usage) -> None:
    events = [operation(f"o{n}", "2026-11" if n % 3 else "2026-12", NEXT_MONTH, n) for n in range(60)]
    events += [end(f"e{n}", "2026-11" if n % 2 else "2026-12", NEXT_MONTH) for n in range(20)]
    chance = random.Random(3)
    for _ in range(3):
        shuffled = chance.sample([*events, *events], 2 * len(events))
        for at in range(0, len(shuffled), 23):
            await usage.counting.count(shuffled[at : at + 23])
    tokens = sum(n for n in range(60) if n % 3)
    assert await usage.used("2026-11") == (10, tokens)
    assert await usage.used("2026-12") == (10, sum(range(60)) - tokens)
    found = await check_ledger(usage.ledger, attempts=1)
    assert (found.clean, found.events) == (True, 80)


async def test_a_plan_change_after_the_month_end_applies_to_the_new_month(usage: Usage) -> None:
    usage.now = NEXT_MONTH
    answer = await usage.http.put(f"/internal/tenants/{TENANT}/plan", json={"plan": "PLUS"})
    assert (answer.json()["period"], answer.json()["limits"]["upgrades"]) == ("2026-12", 10_000)
