"""What a tenant used and what became of its upgrades, over a range of days, from daily rollups."""

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any, Protocol

from services.usage.latency_sketch import add_up, quantiles
from shared.contracts.contract import format_usd
from shared.contracts.stats import GroupBy, LatencyQuantiles, StatsGroup, StatsTotals, TenantStats, UpgradeCounts

MAX_DAYS = 366


class RangeMakesNoSense(Exception):
    """The text says why and may be shown to the caller."""


class Rollups(Protocol):
    async def rollups(self, tenant_id: str, kind: str, from_day: str, to_day: str) -> list[dict[str, Any]]:
        """The tenant's rollups of a kind, first day inclusive, last day exclusive."""


async def tenant_stats(
    rollups: Rollups, tenant_id: str, from_day: date, to_day: date, group_by: GroupBy | None
) -> TenantStats:
    """The totals of the days from `from_day` to before `to_day`, and the same by group. Raises RangeMakesNoSense."""
    days = (to_day - from_day).days
    if days <= 0:
        raise RangeMakesNoSense("from must be before to")
    if days > MAX_DAYS:
        raise RangeMakesNoSense(f"a range has at most {MAX_DAYS} days")
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
