"""Which rollups together cover a range of days once.

Users are many, so beside its days each has rollups of longer spans: the month, and five days from the 1st, 6th, 11th,
16th, 21st and 26th on, the last of which is as long as the month lasts. A range is read as whichever has fewer: the
spans within it, or a longer span less what of it is not wanted. Of any month that is at most eight rollups of a user.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

from shared.contracts.stats import GroupBy

RollupKind = Literal["total", "component", "user", "user_five_days", "user_month"]
_FIVE_DAYS = 5
_SPANS_IN_MONTH = 6


@dataclass(frozen=True)
class RollupRead:
    """Rollups of one kind to be added (sign 1) or taken away (-1); `since` inclusive, `until` exclusive."""

    kind: RollupKind
    since: str
    until: str
    sign: int
    per_key: int
    """How many rollups of each user or component it has."""


def reads_of(group_by: GroupBy, from_day: date, to_day: date) -> list[RollupRead]:
    """What is taken away comes first, so that what it is taken from has all of it."""
    if group_by != "user":
        return _days(from_day, to_day, 1, "component")
    return sorted(_covering(from_day, to_day, 1, _USER_SPANS), key=lambda read: read.sign)


def five_days_with(day: date) -> tuple[date, date]:
    """The first of the five days that a day is in, and the first day after them."""
    number = min((day.day - 1) // _FIVE_DAYS, _SPANS_IN_MONTH - 1)
    first = day.replace(day=1 + number * _FIVE_DAYS)
    return first, next_month(day) if number == _SPANS_IN_MONTH - 1 else first + timedelta(days=_FIVE_DAYS)


def next_month(day: date) -> date:
    """The first day of the month after that of `day`."""
    return date(day.year + day.month // 12, day.month % 12 + 1, 1)


def _month_with(day: date) -> tuple[date, date]:
    return day.replace(day=1), next_month(day)


@dataclass(frozen=True)
class _Spans:
    """A kind of rollup: the span that a day is in, and what stands for its first day."""

    kind: RollupKind
    span_with: Callable[[date], tuple[date, date]]
    name: Callable[[date], str]


_USER_SPANS = (
    _Spans("user_month", _month_with, lambda day: day.isoformat()[:7]),
    _Spans("user_five_days", five_days_with, date.isoformat),
)


def _covering(begin: date, end: date, sign: int, kinds: Sequence[_Spans]) -> list[RollupRead]:
    """The fewest rollups of these kinds and of days."""
    if not kinds:
        return _days(begin, end, sign, "user")
    spans, *shorter = kinds
    reads: list[RollupRead] = []
    while begin < end:
        first, after = spans.span_with(begin)
        until = min(end, after)
        inside = _covering(begin, until, sign, shorter)
        whole = RollupRead(spans.kind, spans.name(first), spans.name(after), sign, 1)
        outside = [*_covering(first, begin, -sign, shorter), *_covering(until, after, -sign, shorter)]
        around = [whole, *outside]
        reads += inside if _per_key(inside) <= _per_key(around) else around
        begin = until
    return reads


def _days(begin: date, end: date, sign: int, kind: RollupKind) -> list[RollupRead]:
    return [RollupRead(kind, begin.isoformat(), end.isoformat(), sign, (end - begin).days)] if begin < end else []


def _per_key(reads: Sequence[RollupRead]) -> int:
    return sum(read.per_key for read in reads)
