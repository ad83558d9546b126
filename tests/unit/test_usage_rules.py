"""Tests of the usage service's rules without a store: increments, rollups, events, quantiles, differences."""

import math
from collections import Counter
from datetime import UTC, date, datetime, timedelta, timezone
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.usage.counting.batch_registry import RECENT, WINDOW, floor_after, may_begin
from services.usage.counting.handlers import to_ledger_event
from services.usage.counting.increments import CounterKey, RollupKey, increments_of
from services.usage.counting.ledger_event import LedgerEvent, day_within, of_completed, of_usage
from services.usage.counting.rollups import (
    LONGEST_MS,
    RELATIVE_ERROR,
    RollupKind,
    RollupRead,
    bucket_of,
    quantiles,
    reads_of,
)
from services.usage.reconciling.comparison import amounts_in, counter_differences, rollup_differences
from shared.contracts.upgrade_results import UpgradeCompleted, UpgradeStatus, UsageTotals
from shared.contracts.usage import UsageRecorded
from shared.messaging.cloudevents import Envelope
from shared.messaging.errors import Unprocessable
from tests.unit.usage_fixtures import ending, mixed_events, operation

OLDEST = datetime(2026, 10, 19, 12, 0, tzinfo=UTC)
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def recorded(**changes: object) -> UsageRecorded:
    fields: dict[str, object] = {
        "event_id": "e1",
        "tenant_id": "tenant-a",
        "component": "rag",
        "operation": "embed_query",
        "tokens_in": 3,
        "embeddings": 1,
        "period": "2026-11",
        "occurred_at": NOW,
    }
    return UsageRecorded.model_validate({**fields, **changes})


def completed(status: UpgradeStatus, **changes: object) -> UpgradeCompleted:
    fields: dict[str, object] = {
        "upgrade_id": "u1",
        "tenant_id": "tenant-a",
        "user_ref": "u_1",
        "origin": "client",
        "status": status,
        "mode": "full",
        "language": "en",
        "user_prompt": "words",
        "upgraded_prompt": "better words",
        "reasoning": "",
        "missing_questions": [],
        "confidence": None,
        "citations": [],
        "prompt": None,
        "model": None,
        "usage": UsageTotals(tokens_in=99),
        "latency_ms": 1200,
        "warnings": [],
        "error": None,
        "period": "2026-11",
        "created_at": NOW,
        "occurred_at": NOW,
    }
    return UpgradeCompleted.model_validate({**fields, **changes})


def envelope(event_id: str, data: UsageRecorded | UpgradeCompleted) -> Envelope:
    return Envelope(event_id, "type", "test", None, NOW, None, data)


def test_the_upgrades_meter_counts_upgraded_and_cached() -> None:
    events = [ending(f"e{n}", status) for n, status in enumerate(("upgraded", "cached", "original", "failed"))]
    counters = increments_of(events).counters
    assert counters == {CounterKey("tenant-a", "2026-11"): {"upgrades": 2}}


def test_tokens_and_embeddings_count_operations() -> None:
    counters = increments_of([operation("e1"), operation("e2", embeddings=4), ending("e3", "failed")]).counters
    assert counters == {CounterKey("tenant-a", "2026-11"): {"tokens": 30, "embeddings": 4, "costNanoUsd": 14}}


def test_a_completion_adds_no_tokens() -> None:
    event = of_completed("e1", completed(UpgradeStatus.UPGRADED))
    assert increments_of([event]).counters == {CounterKey("tenant-a", "2026-11"): {"upgrades": 1}}


def test_eval_events_are_added_to_rollups_only() -> None:
    increments = increments_of([operation("e1", origin="eval"), ending("e2", origin="eval")])
    assert increments.counters == {}
    assert increments.rollups[RollupKey("tenant-a", "2026-11-23", "eval", "total", "")]["tokensIn"] == 10


def test_rollups_by_day_component_and_user() -> None:
    increments = increments_of([operation("e1", cache_hit=True), ending("e2", "failed", user_ref=None)])

    def key(kind: RollupKind, of: str) -> RollupKey:
        return RollupKey("tenant-a", "2026-11-23", "client", kind, of)

    work = {"tokensIn": 10, "tokensOut": 5, "costNanoUsd": 7, "operations": 1, "cacheHits": 1}
    end = {"upgrades.total": 1, "upgrades.failed": 1, f"latency.{bucket_of(1500)}": 1}
    assert increments.rollups == {
        key("total", ""): {**work, **end},
        key("user", "u_1"): work,
        RollupKey("tenant-a", "2026-11-21", "client", "user_five_days", "u_1"): work,
        RollupKey("tenant-a", "2026-11-21", "client", "user_five_days", "anonymous"): end,
        RollupKey("tenant-a", "2026-11", "client", "user_month", "u_1"): work,
        RollupKey("tenant-a", "2026-11", "client", "user_month", "anonymous"): end,
        key("user", "anonymous"): end,
        key("component", "upgrader"): {**work, f"latency.{bucket_of(100)}": 1},
    }


def test_increments_equal_the_sums_of_the_events() -> None:
    events = mixed_events(300)
    whole = increments_of(events)
    tokens = sum(e.tokens_in + e.tokens_out for e in events if e.origin == "client")
    assert sum(amounts.get("tokens", 0) for amounts in whole.counters.values()) == tokens
    for kind in ("component", "user", "user_five_days", "user_month", "total"):
        of_kind = [amounts for key, amounts in whole.rollups.items() if key.kind == kind]
        assert sum(a.get("costNanoUsd", 0) for a in of_kind) == sum(e.cost_nano_usd for e in events)


@given(st.dates(date(2023, 12, 1), date(2024, 4, 30)), st.integers(1, 100))
def test_a_range_by_user_reads_few_rollups_and_each_day_once(begin: date, days: int) -> None:
    end = begin + timedelta(days=days)
    reads = reads_of("user", begin, end)
    covered: Counter[date] = Counter()
    for read in reads:
        for event_day in _days_around(begin, end):
            event = operation("e", period=event_day.isoformat()[:7], day=event_day.isoformat())
            if any(_reads_it(read, key) for key in increments_of([event]).rollups):
                covered[event_day] += read.sign
    assert +covered == {begin + timedelta(days=n): 1 for n in range(days)}
    assert min(covered.values()) >= 0
    assert sum(read.per_key for read in reads) <= 8 * 2 + (days // 28)
    assert reads == sorted(reads, key=lambda read: read.sign)


def _days_around(begin: date, end: date) -> list[date]:
    return [begin + timedelta(days=n) for n in range(-40, (end - begin).days + 40)]


def _reads_it(read: RollupRead, key: RollupKey) -> bool:
    return key.kind == read.kind and read.since <= key.day < read.until


@pytest.mark.parametrize(
    ("moment", "day"),
    [
        (NOW, "2026-11-23"),
        (datetime(2026, 12, 1, 0, 0, 3, tzinfo=UTC), "2026-11-30"),
        (datetime(2026, 10, 31, 23, 59, tzinfo=UTC), "2026-11-01"),
        (datetime(2026, 11, 30, 20, 0, tzinfo=timezone(timedelta(hours=-5))), "2026-11-30"),
    ],
)
def test_a_day_stays_within_its_period(moment: datetime, day: str) -> None:
    assert day_within("2026-11", moment) == day


def test_december_ends_with_its_31st() -> None:
    assert day_within("2026-12", datetime(2027, 1, 2, tzinfo=UTC)) == "2026-12-31"
    assert day_within("9999-12", datetime(9999, 12, 31, tzinfo=UTC)) == "9999-12-30"


def test_a_malformed_period_is_replaced_by_the_month_of_the_event() -> None:
    for period in ("2026-13", "", "0000-01", "november"):
        assert of_usage("e1", recorded(period=period)).period == "2026-11"


@given(st.integers(min_value=0, max_value=50))
def test_ledger_events_survive_storage(seed: int) -> None:
    for event in mixed_events(5, seed):
        assert LedgerEvent.from_document(event.to_document()) == event


def test_the_ledger_stores_no_text() -> None:
    document = of_completed("e1", completed(UpgradeStatus.UPGRADED)).to_document()
    assert "words" not in str(document)


@pytest.mark.parametrize(
    "odd",
    [
        envelope("", recorded()),
        envelope("x" * 201, recorded()),
        envelope("e1", recorded(tokens_in=10**16)),
        envelope("e1", recorded(occurred_at=NOW - timedelta(days=35, seconds=1))),
    ],
)
def test_invalid_and_outdated_events_are_refused(odd: Envelope) -> None:
    with pytest.raises(Unprocessable):
        to_ledger_event(odd, OLDEST)


def test_a_ledger_event_has_the_id_of_its_envelope() -> None:
    assert to_ledger_event(envelope("copy", recorded()), OLDEST).event_id == "copy"
    assert to_ledger_event(envelope("end", completed(UpgradeStatus.CACHED)), OLDEST).status == "cached"


@given(st.lists(st.integers(min_value=0, max_value=LONGEST_MS), min_size=1, max_size=200))
def test_quantiles_are_within_their_error(latencies: list[int]) -> None:
    sketch = Counter(bucket_of(value) for value in latencies)
    ordered = sorted(latencies)
    for wanted, answer in zip((0.0, 0.5, 0.95, 0.99, 1.0), quantiles(sketch, (0.0, 0.5, 0.95, 0.99, 1.0)), strict=True):
        true = ordered[max(1, math.ceil(Fraction(str(wanted)) * len(ordered))) - 1]
        # Half a millisecond is what rounding to whole ones can add.
        assert abs(answer - true) <= RELATIVE_ERROR * true + 0.5 + 1e-6


def test_the_highest_quantiles_of_few_values_are_the_slowest() -> None:
    [fast] = quantiles({bucket_of(81): 1}, (1.0,))
    [slow] = quantiles({bucket_of(602): 1}, (1.0,))
    sketch = Counter(bucket_of(value) for value in (602, 81))
    assert quantiles(sketch, (0.5, 0.95, 0.99)) == [fast, slow, slow]


def test_quantiles_of_an_empty_sketch_are_zero() -> None:
    assert quantiles({}, (0.5, 0.99)) == [0, 0]


def test_window_and_floor() -> None:
    assert may_begin(WINDOW + 5, [6])
    assert not may_begin(WINDOW + 5, [200, 5])
    assert floor_after(WINDOW + 5) == 5
    assert floor_after(3) == 0
    assert RECENT >= 2 * WINDOW


def test_a_difference_names_tenant_meter_and_amount() -> None:
    increments = increments_of([operation("e1"), ending("e2")])
    stored = {"tenantId": "tenant-a", "period": "2026-11", "version": 4, "recentBatches": [1], "batchFloor": 0}
    (difference,) = counter_differences(
        increments, [{**stored, "upgrades": 2, "tokens": 15, "embeddings": 0, "costNanoUsd": 7}]
    )
    assert difference.to_json() == {
        "tenant_id": "tenant-a",
        "what": "counter",
        "where": "2026-11",
        "meter": "upgrades",
        "stored": 2,
        "ledger": 1,
        "amount": 1,
    }


def test_missing_and_surplus_documents_are_differences() -> None:
    increments = increments_of([operation("e1")])
    assert {found.meter for found in counter_differences(increments, [])} == {"tokens", "costNanoUsd"}
    surplus = {"tenantId": "t", "day": "2026-11-01", "origin": "client", "kind": "total", "key": "", "operations": 3}
    found = rollup_differences(increments_of([]), [surplus])
    assert [(f.tenant_id, f.where, f.amount) for f in found] == [("t", "2026-11-01 client total", 3)]


def test_amounts_of_nested_fields_have_dotted_names() -> None:
    assert amounts_in({"_id": "x", "upgrades": {"total": 2}, "tokensIn": 1}) == {"upgrades.total": 2, "tokensIn": 1}
