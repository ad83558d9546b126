"""Tests of the usage service's internal HTTP and of its reconcile command, on SQLite."""

import random
from collections.abc import AsyncIterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from services.usage.counting.count_batch import CountBatch
from services.usage.counting.ledger_store import COUNTERS, ROLLUPS, LedgerStore
from services.usage.counting.rollups import next_month
from services.usage.counting.routes import usage_routes
from services.usage.reconciling.command import reconcile_stored
from services.usage.reconciling.full_reconciliation import ReconcileReport
from services.usage.reconciling.recount import LedgerCheck, check_ledger
from services.usage.settings import ReconcileSettings
from shared.contracts.contract import now_utc
from shared.contracts.internal_http import INTERNAL_TOKEN_HEADER
from shared.service.http import internal_app
from shared.service.settings import ObservabilitySettings
from shared.service.telemetry import Telemetry
from shared.storage.sqlite import SqliteDatabase
from tests.unit.usage_fixtures import ending, mixed_events, operation


class Usage:
    def __init__(self, path: Path) -> None:
        self.database = SqliteDatabase(path / "usage.sqlite3")
        self.ledger = LedgerStore(self.database)
        self.counting = CountBatch(self.ledger, self.ledger.registry, owner="one", lease_seconds=0.0)
        self.counters = self.database.collection(COUNTERS)
        self.rollups = self.database.collection(ROLLUPS)
        app = internal_app(
            Telemetry("usage", ObservabilitySettings()), internal_token="t", routers=[usage_routes(self.ledger)]
        )
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://usage", headers={INTERNAL_TOKEN_HEADER: "t"}
        )

    async def stats(self, query: str, tenant: str = "tenant-a") -> dict[str, Any]:
        answer = await self.http.get(f"/internal/tenants/{tenant}/stats?{query}")
        assert answer.status_code == 200, answer.text
        stats: dict[str, Any] = answer.json()
        return stats


@pytest.fixture
async def usage(tmp_path: Path) -> AsyncIterator[Usage]:
    usage = Usage(tmp_path)
    await usage.database.start()
    yield usage
    await usage.http.aclose()
    await usage.database.stop(5)


async def test_events_missing_in_the_ledger_are_returned(usage: Usage) -> None:
    await usage.counting.count([operation("e1"), operation("e2")])
    answer = await usage.http.post("/internal/events/missing", json={"eventIds": ["e3", "e1", "e4"]})
    assert answer.json() == {"eventIds": ["e3", "e4"]}
    too_many = await usage.http.post("/internal/events/missing", json={"eventIds": ["e"] * 10_001})
    assert (too_many.status_code, too_many.json()["code"]) == (422, "invalid_request")


async def test_counters_of_a_period(usage: Usage) -> None:
    await usage.counting.count([operation("e1", embeddings=2), ending("e2"), operation("e3", period="2026-10")])
    answer = await usage.http.get("/internal/tenants/tenant-a/counters?period=2026-11")
    assert answer.json() == {
        "tenantId": "tenant-a",
        "period": "2026-11",
        "upgrades": 1,
        "tokens": 15,
        "embeddings": 2,
        "costNanoUsd": 7,
        "version": 1,
    }
    unused = await usage.http.get("/internal/tenants/tenant-z/counters?period=2026-11")
    assert (unused.json()["tokens"], unused.json()["version"]) == (0, 0)


@pytest.mark.parametrize("period", ["", "2026", "2026-13", "november", "2026-11-01"])
async def test_an_invalid_period_is_rejected(usage: Usage, period: str) -> None:
    answer = await usage.http.get(f"/internal/tenants/tenant-a/counters?period={period}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_every_route_requires_the_internal_token(usage: Usage) -> None:
    for path in ("events/missing", "tenants/t/counters?period=2026-11", "tenants/t/stats"):
        answer = await usage.http.request(
            "POST" if "missing" in path else "GET", f"/internal/{path}", headers={INTERNAL_TOKEN_HEADER: "x"}
        )
        assert answer.status_code == 401


async def test_stats_of_a_range(usage: Usage) -> None:
    await usage.counting.count(
        [
            operation("e1", day="2026-11-01", cache_hit=True, cost_nano_usd=1_500_000_000),
            operation("e2", day="2026-11-02", component="rag", latency_ms=40, embeddings=1),
            ending("e3", "upgraded", day="2026-11-02", latency_ms=1000),
            ending("e4", "original", day="2026-11-02", latency_ms=4000, user_ref=None),
            ending("e5", "failed", day="2026-11-03"),
        ]
    )
    stats = await usage.stats("from=2026-11-01&to=2026-11-03&groupBy=day")
    assert (stats["from"], stats["to"]) == ("2026-11-01", "2026-11-03")
    totals = stats["totals"]
    assert totals["upgrades"] == {"total": 2, "upgraded": 1, "cached": 0, "original": 1, "failed": 0}
    assert (totals["tokensIn"], totals["tokensOut"], totals["embeddings"]) == (20, 10, 1)
    assert totals["costUsd"] == "1.500000007"
    assert (totals["cacheHitRate"], totals["errorRate"]) == (0.5, 0.5)
    assert totals["latencyMs"]["p50"] == pytest.approx(1000, rel=0.02)
    assert totals["latencyMs"]["p99"] == pytest.approx(4000, rel=0.02)
    assert [group["key"] for group in stats["groups"]] == ["2026-11-01", "2026-11-02"]
    assert stats["groups"][0]["upgrades"]["total"] == 0


async def test_stats_by_component_and_user(usage: Usage) -> None:
    await usage.counting.count(
        [operation("e1", component="rag", latency_ms=40), operation("e2"), ending("e3", user_ref=None)]
    )
    by_component = (await usage.stats("from=2026-11-01&to=2026-12-01&groupBy=component"))["groups"]
    assert [(group["key"], group["tokensIn"]) for group in by_component] == [("rag", 10), ("upgrader", 10)]
    assert by_component[0]["latencyMs"]["p50"] == pytest.approx(40, rel=0.02)
    by_user = (await usage.stats("from=2026-11-01&to=2026-12-01&groupBy=user"))["groups"]
    assert [(group["key"], group["upgrades"]["total"]) for group in by_user] == [("anonymous", 1), ("u_1", 0)]


async def test_stats_by_user_over_several_months(usage: Usage) -> None:
    days = ("2026-09-30", "2026-10-01", "2026-10-31", "2026-11-01", "2026-11-15", "2026-12-01")
    await usage.counting.count(
        [operation(f"e{n}", day=day, period=day[:7], tokens_in=10**n) for n, day in enumerate(days)]
    )
    for since, until, tokens in (
        ("2026-09-30", "2026-12-02", 111_111),
        ("2026-10-01", "2026-12-01", 11_110),
        ("2026-10-02", "2026-11-15", 1_100),
        ("2026-11-01", "2026-11-16", 11_000),
        ("2026-11-02", "2026-11-30", 10_000),
    ):
        stats = await usage.stats(f"from={since}&to={until}&groupBy=user")
        assert stats["totals"]["tokensIn"] == tokens
        assert [group["tokensIn"] for group in stats["groups"]] == [tokens]


@pytest.mark.parametrize("group_by", ["day", "component", "user"])
async def test_any_range_is_the_sum_of_its_days(usage: Usage, group_by: str) -> None:
    """Ranges made of days, of months, and of months minus some days."""
    chance = random.Random(5)
    await usage.counting.count(mixed_events(1500))
    days = [date(2026, 9, 29) + timedelta(days=number) for number in range(65)]
    of_day = {day: await usage.stats(f"from={day}&to={day + timedelta(days=1)}&groupBy={group_by}") for day in days}
    for _ in range(25):
        first, last = sorted(chance.sample(days, 2))
        stats = await usage.stats(f"from={first}&to={last}&groupBy={group_by}")
        within = [of_day[day] for day in days if first <= day < last]
        expected: dict[str, list[int]] = {}
        for group in (group for one in within for group in one["groups"]):
            sums = expected.setdefault(group["key"], [0, 0, 0])
            for at, amount in enumerate((group["tokensIn"], group["embeddings"], group["upgrades"]["total"])):
                sums[at] += amount
        found = {g["key"]: [g["tokensIn"], g["embeddings"], g["upgrades"]["total"]] for g in stats["groups"]}
        assert found == expected
        assert stats["totals"]["tokensIn"] == sum(one["totals"]["tokensIn"] for one in within)


async def test_stats_include_usage_of_evals(usage: Usage) -> None:
    await usage.counting.count([operation("e1"), operation("e2", origin="eval")])
    assert (await usage.stats("from=2026-11-01&to=2026-12-01"))["totals"]["tokensIn"] == 20
    counters = await usage.http.get("/internal/tenants/tenant-a/counters?period=2026-11")
    assert counters.json()["tokens"] == 15


async def test_stats_default_to_this_month(usage: Usage) -> None:
    stats = await usage.stats("")
    assert stats["from"] == now_utc().strftime("%Y-%m-01")
    assert stats["from"] < stats["to"]
    assert stats["groups"] == []
    assert stats["totals"]["costUsd"] == "0.000000000"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("from=2026-11-02&to=2026-11-02", "to"),
        ("from=2026-11-03&to=2026-11-02", "to"),
        ("from=2024-01-01&to=2026-11-02", "to"),
        ("from=2021-01-01", "from"),
        ("from=9000-01-01", "from"),
        ("from=9999-12-31&to=9999-12-31", "from"),
        ("to=0001-01-01", "to"),
        ("to=9999-12-31", "to"),
    ],
)
async def test_invalid_ranges_are_rejected(usage: Usage, query: str, field: str) -> None:
    answer = await usage.http.get(f"/internal/tenants/tenant-a/stats?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert [error["field"] for error in answer.json()["errors"]] == [field]


@pytest.mark.parametrize("query", ["from=yesterday", "groupBy=tenant", "to=2026-02-30", "from=1793491200"])
async def test_invalid_days_and_groups_are_rejected(usage: Usage, query: str) -> None:
    answer = await usage.http.get(f"/internal/tenants/tenant-a/stats?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_a_range_with_one_end_defaults_to_a_month(usage: Usage) -> None:
    until = await usage.stats("to=2026-03-15")
    assert (until["from"], until["to"]) == ("2026-03-01", "2026-03-15")
    month = await usage.stats("to=2026-03-01")
    assert (month["from"], month["to"]) == ("2026-02-01", "2026-03-01")
    today = now_utc().date()
    since = await usage.stats(f"from={today}")
    assert (since["from"], since["to"]) == (today.isoformat(), next_month(today).isoformat())


async def test_reconcile_finds_no_difference_in_an_intact_store(usage: Usage, tmp_path: Path) -> None:
    await usage.counting.count(mixed_events(300))
    settings = ReconcileSettings(
        _env_file=None,
        data_dir=tmp_path,
        mongodb_url=None,
        kafka_bootstrap_servers="127.0.0.1:1",
        redis_url=SecretStr("redis://127.0.0.1:1/0"),
    )
    found = await reconcile_stored(settings)
    assert found.clean
    assert set(found.unreached) == {"topics", "holds"}
    *_, not_compared, verdict = found.to_text().splitlines()
    assert not_compared.startswith("not compared: topics, ")
    assert verdict == "300 events of 2 tenants: no difference in what was compared"


async def test_reconcile_reports_tenant_meter_and_amount(usage: Usage) -> None:
    await usage.counting.count([operation("e1"), ending("e2")])
    await usage.counters.update_one({"tenantId": "tenant-a"}, {"$inc": {"tokens": 3}})
    await usage.rollups.update_one({"kind": "component"}, {"$inc": {"operations": -1}})
    found = await check_ledger(usage.ledger, attempts=1)
    assert not found.clean
    assert [(d.tenant_id, d.what, d.meter, d.amount) for d in found.differences] == [
        ("tenant-a", "counter", "tokens", 3),
        ("tenant-a", "rollup", "operations", -1),
    ]
    assert "tenant-a  counter 2026-11  tokens: stored 18, ledger 15, off by +3" in report_of(found).to_text()
    assert report_of(found).to_json()["differences"][0]["amount"] == 3


def report_of(found: LedgerCheck) -> ReconcileReport:
    return ReconcileReport(found, None, None, {})


async def store_and_abandon(usage: Usage) -> None:
    """Stores an event in a batch whose process never continues."""
    number = await usage.ledger.registry.begin("gone", 0.0)
    assert number is not None
    await usage.ledger.store([operation("e1")], number)


async def test_reconcile_reports_events_that_stay_uncounted(usage: Usage) -> None:
    await store_and_abandon(usage)
    found = await check_ledger(usage.ledger, attempts=1)
    assert (found.clean, found.uncounted, found.differences) == (False, 1, [])
    assert "1 events of the ledger are not counted" in report_of(found).to_text()


async def test_reconcile_waits_for_events_being_counted(usage: Usage) -> None:
    await store_and_abandon(usage)

    async def counted_meanwhile(seconds: float) -> None:
        await usage.counting.resume()

    found = await check_ledger(usage.ledger, attempts=2, sleep=counted_meanwhile)
    assert (found.clean, found.events) == (True, 1)
