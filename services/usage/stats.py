"""What a tenant used and what became of its upgrades, over a range of days, from daily rollups."""

from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from typing import Any, Protocol

from services.usage.latency_sketch import add_up, quantiles
from shared.contracts.contract import format_usd
from shared.contracts.stats import GroupBy, LatencyQuantiles, StatsGroup, StatsTotals, TenantStats, UpgradeCounts

MAX_DAYS = 366
FIRST_YEAR, LAST_YEAR = 2000, 9998


class RangeMakesNoSense(Exception):
    """The text says why and may be shown to the caller, who named the range in `field`: `from` or `to`."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


class Rollups(Protocol):
    async def rollups(self, tenant_id: str, kind: str, from_day: str, to_day: str) -> list[dict[str, Any]]:
        """The tenant's rollups of a kind, first day inclusive, last day exclusive."""


async def tenant_stats(
    rollups: Rollups, tenant_id: str, from_day: date, to_day: date, group_by: GroupBy | None
) -> TenantStats:
    """The totals of the days from `from_day` to before `to_day`, and the same by group."""
    first, last = from_day.isoformat(), to_day.isoformat()
    by_day = await rollups.rollups(tenant_id, "total", first, last)
    grouped: dict[str, list[dict[str, Any]]] = {}
    if group_by == "day":
        for rollup in by_day:
            grouped.setdefault(rollup["day"], []).append(rollup)
    elif group_by is not None:
        for kind, since, until in _reads(group_by, from_day, to_day):
            for rollup in await rollups.rollups(tenant_id, kind, since, until):
                grouped.setdefault(rollup["key"], []).append(rollup)
    groups = [StatsGroup(key=key, **_totals(grouped[key]).model_dump()) for key in sorted(grouped)]
    return TenantStats(from_day=first, to_day=last, totals=_totals(by_day), groups=groups)


def _reads(group_by: GroupBy, from_day: date, to_day: date) -> list[tuple[str, str, str]]:
    """Kinds and ranges of the rollups that cover the days once: for users, whole months as such."""
    first, last = from_day.isoformat(), to_day.isoformat()
    months_from = from_day if from_day.day == 1 else next_month(from_day)
    months_to = to_day.replace(day=1)
    if group_by != "user" or months_from >= months_to:
        return [(group_by, first, last)]
    reads = [
        ("user", first, months_from.isoformat()),
        ("user_month", months_from.isoformat()[:7], months_to.isoformat()[:7]),
        ("user", months_to.isoformat(), last),
    ]
    return [(kind, since, until) for kind, since, until in reads if since < until]


def range_of_days(from_day: date | None, to_day: date | None, today: date) -> tuple[date, date]:
    """The range that is meant: this month, or with one end given the month of that end. Raises RangeMakesNoSense.

    Without `to` it ends with this month, without `from` it begins with the month of the last day before `to`.
    """
    for field, day in (("from", from_day), ("to", to_day)):
        if day is not None and not FIRST_YEAR <= day.year <= LAST_YEAR:
            raise RangeMakesNoSense(field, f"The year must be from {FIRST_YEAR} to {LAST_YEAR}.")
    last = to_day or next_month(today)
    first = from_day or (last - timedelta(days=1)).replace(day=1)
    if first >= last:
        if to_day is None:
            raise RangeMakesNoSense("from", "This is after this month; `to` must say until when.")
        raise RangeMakesNoSense("to", "The day must be after `from`.")
    if (last - first).days > MAX_DAYS:
        raise RangeMakesNoSense("from" if to_day is None else "to", f"A range has at most {MAX_DAYS} days.")
    return first, last


def next_month(day: date) -> date:
    """The first day of the month after that of `day`."""
    return date(day.year + day.month // 12, day.month % 12 + 1, 1)


def _totals(rollups: Iterable[Mapping[str, Any]]) -> StatsTotals:
    rollups = list(rollups)
    upgrades = add_up(rollup.get("upgrades", {}) for rollup in rollups)
    ended = upgrades.get("total", 0)
    operations = _sum(rollups, "operations")
    p50, p95, p99 = quantiles(add_up(rollup.get("latency", {}) for rollup in rollups), (0.50, 0.95, 0.99))
    return StatsTotals(
        upgrades=UpgradeCounts(**{name: upgrades.get(name, 0) for name in UpgradeCounts.model_fields}),
        tokens_in=_sum(rollups, "tokensIn"),
        tokens_out=_sum(rollups, "tokensOut"),
        embeddings=_sum(rollups, "embeddings"),
        cost_usd=format_usd(_sum(rollups, "costNanoUsd")),
        cache_hit_rate=_share(_sum(rollups, "cacheHits"), operations),
        error_rate=_share(upgrades.get("original", 0) + upgrades.get("failed", 0), ended),
        latency_ms=LatencyQuantiles(p50=p50, p95=p95, p99=p99),
    )


def _sum(rollups: Iterable[Mapping[str, Any]], field: str) -> int:
    return sum(rollup.get(field, 0) for rollup in rollups)


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0
