"""Computes a tenant's statistics over a range of days from its rollups: upgrades, tokens, cost, rates, latencies."""

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any, Protocol

from services.usage.counting.rollups import next_month, quantiles, reads_of
from shared.contracts.contract import format_usd
from shared.contracts.usage import GroupBy, LatencyQuantiles, StatsGroup, StatsTotals, TenantStats, UpgradeCounts

_MAX_DAYS = 366
_FIRST_YEAR, _LAST_YEAR = 2000, 9998
_SUMMED = ("tokensIn", "tokensOut", "embeddings", "costNanoUsd", "operations", "cacheHits")


class InvalidRange(Exception):
    """The requested range is invalid. The text is for the caller; `field` is the wrong parameter, `from` or `to`."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


class Rollups(Protocol):
    """The stored rollups."""

    async def rollups(self, tenant_id: str, kind: str, from_day: str, to_day: str) -> list[dict[str, Any]]:
        """The tenant's rollups of one kind, `from_day` inclusive, `to_day` exclusive."""


async def tenant_stats(
    rollups: Rollups, tenant_id: str, from_day: date, to_day: date, group_by: GroupBy | None
) -> TenantStats:
    """The tenant's totals from `from_day` to before `to_day`, and per group when `group_by` is set."""
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


def requested_range(from_day: date | None, to_day: date | None, today: date) -> tuple[date, date]:
    """The first day and the end (exclusive) of the requested range. Raises InvalidRange.

    By default it ends with the month of `today`, and begins on the first day of the month of its last day.
    """
    for field, day in (("from", from_day), ("to", to_day)):
        if day is not None and not _FIRST_YEAR <= day.year <= _LAST_YEAR:
            raise InvalidRange(field, f"The year must be from {_FIRST_YEAR} to {_LAST_YEAR}.")
    last = to_day or next_month(today)
    first = from_day or (last - timedelta(days=1)).replace(day=1)
    if first >= last:
        if to_day is None:
            raise InvalidRange("from", "This is after this month; `to` must say until when.")
        raise InvalidRange("to", "The day must be after `from`.")
    if (last - first).days > _MAX_DAYS:
        raise InvalidRange("from" if to_day is None else "to", f"A range has at most {_MAX_DAYS} days.")
    return first, last


class _Sum:
    """The sum of rollups."""

    def __init__(self) -> None:
        self._amounts = dict.fromkeys(_SUMMED, 0)
        self._upgrades: dict[str, int] = {}
        self._latency: dict[str, int] = {}

    @property
    def has_any(self) -> bool:
        """Whether it has any operation or upgrade."""
        return self._amounts["operations"] > 0 or self._upgrades.get("total", 0) > 0

    def add(self, rollup: Mapping[str, Any], sign: int) -> None:
        """Adds a rollup (`sign` 1) or subtracts it (-1)."""
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
        # A batch raises rollups one by one: a subtracted rollup may have it before the added one does.
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
