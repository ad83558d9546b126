"""What a tenant used and what became of its upgrades, over a range of days, from daily rollups."""

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any, Protocol

from services.usage.counting.rollups import next_month, quantiles, reads_of
from shared.contracts.contract import format_usd
from shared.contracts.usage import GroupBy, LatencyQuantiles, StatsGroup, StatsTotals, TenantStats, UpgradeCounts

MAX_DAYS = 366
_SUMMED = ("tokensIn", "tokensOut", "embeddings", "costNanoUsd", "operations", "cacheHits")
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
    total = _Sum()
    grouped: dict[str, _Sum] = {}
    for rollup in by_day:
        total.add(rollup, 1)
        if group_by == "day":
            grouped.setdefault(rollup["day"], _Sum()).add(rollup, 1)
    if group_by is not None and group_by != "day":
        for read in reads_of(group_by, from_day, to_day):
            for rollup in await rollups.rollups(tenant_id, read.kind, read.since, read.until):
                grouped.setdefault(rollup["key"], _Sum()).add(rollup, read.sign)
    groups = [StatsGroup(key=key, **grouped[key].totals()) for key in sorted(grouped) if grouped[key].has_any]
    return TenantStats(from_day=first, to_day=last, totals=StatsTotals(**total.totals()), groups=groups)


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


class _Sum:
    """Rollups added up, or taken away again."""

    def __init__(self) -> None:
        self._amounts = dict.fromkeys(_SUMMED, 0)
        self._upgrades: dict[str, int] = {}
        self._latency: dict[str, int] = {}

    @property
    def has_any(self) -> bool:
        """Whether anything happened in it."""
        return self._amounts["operations"] > 0 or self._upgrades.get("total", 0) > 0

    def add(self, rollup: Mapping[str, Any], sign: int) -> None:
        for name in _SUMMED:
            if name in rollup:
                self._amounts[name] += sign * rollup[name]
        for into, counts in ((self._upgrades, rollup.get("upgrades")), (self._latency, rollup.get("latency"))):
            if counts and not into and sign > 0:
                into.update(counts)
            elif counts:
                for name, count in counts.items():
                    into[name] = into.get(name, 0) + sign * count

    def totals(self) -> dict[str, Any]:
        """The fields of `StatsTotals`."""
        # What is counted between two reads can be in what is taken away alone.
        amounts = {name: max(0, amount) for name, amount in self._amounts.items()}
        counts = {name: max(0, self._upgrades.get(name, 0)) for name in UpgradeCounts.model_fields}
        upgrades = UpgradeCounts(**counts)
        p50, p95, p99 = quantiles(self._latency, (0.50, 0.95, 0.99))
        return {
            "upgrades": upgrades,
            "tokens_in": amounts["tokensIn"],
            "tokens_out": amounts["tokensOut"],
            "embeddings": amounts["embeddings"],
            "cost_usd": format_usd(amounts["costNanoUsd"]),
            "cache_hit_rate": _share(amounts["cacheHits"], amounts["operations"]),
            "error_rate": _share(upgrades.original + upgrades.failed, upgrades.total),
            "latency_ms": LatencyQuantiles(p50=p50, p95=p95, p99=p99),
        }


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole > 0 else 0.0
