"""Daily and monthly rollups: which of them cover a range of days once, and the mergeable sketch that holds their
latencies.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from typing import Literal

from shared.contracts.usage import GroupBy

RELATIVE_ERROR = 0.02
LONGEST_MS = 100_000_000

_GROWTH = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GROWTH = math.log(_GROWTH)
_ZERO = "zero"
_ROUNDING = 1e-6

Buckets = Mapping[str, int]


def bucket_of(latency_ms: int) -> str:
    """The name of the bucket that a latency in milliseconds is counted in; longer than 10^8 counts as that."""
    if latency_ms <= 0:
        return _ZERO
    # The small step down keeps an exact power of the factor out of the bucket above.
    return f"b{math.ceil(math.log(min(latency_ms, LONGEST_MS)) / _LOG_GROWTH - 1e-9)}"


def quantiles(buckets: Buckets, wanted: Sequence[float]) -> list[int]:
    """The latencies in milliseconds at the rising ranks `wanted` (0..1); zeros for an empty sketch.

    Ranks are nearest ranks (Hyndman and Fan's definition 1): the smallest value that so many of all are not above. Of a
    few values the highest ranks then are the slowest one.
    """
    count = sum(buckets.values())
    answers: list[int] = []
    passed = 0
    for bucket in sorted(buckets, key=_index):
        passed += buckets[bucket]
        while passed >= max(1, wanted[len(answers)] * count - _ROUNDING):
            answers.append(_value(_index(bucket)))
            if len(answers) == len(wanted):
                return answers
    return [0] * len(wanted)


@lru_cache(maxsize=1024)
def _index(bucket: str) -> int:
    return -1 if bucket == _ZERO else int(bucket[1:])


@lru_cache(maxsize=1024)
def _value(index: int) -> int:
    return 0 if index < 0 else round(2 * _GROWTH**index / (_GROWTH + 1))


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
