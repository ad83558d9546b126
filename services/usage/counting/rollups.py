"""The shape of rollups: which spans of days they cover, which of them to read for a range, and their latency sketch.

Latencies are counted in buckets of exponentially growing width, as in DDSketch: buckets of several rollups can be
added, and quantiles of the sum are within `RELATIVE_ERROR`.

Components have one rollup per day. Users are many, so each also has rollups of five days and of a month: a range is
read as the fewest rollups that add up to it, where some may have to be subtracted.
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
_FIVE_DAYS = 5
_SPANS_IN_MONTH = 6

RollupKind = Literal["total", "component", "user", "user_five_days", "user_month"]
Buckets = Mapping[str, int]


@dataclass(frozen=True)
class RollupRead:
    """Rollups of one kind to be added (`sign` 1) or subtracted (-1); `since` inclusive, `until` exclusive."""

    kind: RollupKind
    since: str
    until: str
    sign: int
    per_key: int
    """How many rollups are read for each user or component."""


def reads_of(group_by: GroupBy, from_day: date, to_day: date) -> list[RollupRead]:
    """The rollups that add up to a range by component or user, `to_day` exclusive.

    Those to subtract come first: an event counted between two reads is then at most in the added ones.
    """
    if group_by != "user":
        return _days(from_day, to_day, 1, "component")
    return sorted(_covering(from_day, to_day, 1, _USER_SPANS), key=lambda read: read.sign)


def five_days_with(day: date) -> tuple[date, date]:
    """The five-day span of a month that contains a day, end exclusive. The sixth span lasts until the month ends."""
    number = min((day.day - 1) // _FIVE_DAYS, _SPANS_IN_MONTH - 1)
    first = day.replace(day=1 + number * _FIVE_DAYS)
    return first, next_month(day) if number == _SPANS_IN_MONTH - 1 else first + timedelta(days=_FIVE_DAYS)


def next_month(day: date) -> date:
    """The first day of the month after that of `day`."""
    return date(day.year + day.month // 12, day.month % 12 + 1, 1)


def bucket_of(latency_ms: int) -> str:
    """The name of the bucket for a latency in milliseconds. Latencies above `LONGEST_MS` use the bucket of that."""
    if latency_ms <= 0:
        return _ZERO
    # The small subtraction keeps an exact power of the factor out of the bucket above.
    return f"b{math.ceil(math.log(min(latency_ms, LONGEST_MS)) / _LOG_GROWTH - 1e-9)}"


def quantiles(buckets: Buckets, wanted: Sequence[float]) -> list[int]:
    """The latencies in milliseconds at the ranks `wanted` (0..1, ascending); zeros for an empty sketch.

    Ranks are nearest ranks (definition 1 of Hyndman and Fan): the smallest value that at least this share of all values
    does not exceed. With few values the highest ranks are the slowest one.
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


@dataclass(frozen=True)
class _Spans:
    """A kind of rollup: the span that contains a day (end exclusive), and the name of the span that begins on a day."""

    kind: RollupKind
    span_with: Callable[[date], tuple[date, date]]
    name: Callable[[date], str]


def _month_with(day: date) -> tuple[date, date]:
    return day.replace(day=1), next_month(day)


_USER_SPANS = (
    _Spans("user_month", _month_with, lambda day: day.isoformat()[:7]),
    _Spans("user_five_days", five_days_with, date.isoformat),
)


def _covering(begin: date, end: date, sign: int, kinds: Sequence[_Spans]) -> list[RollupRead]:
    """The fewest rollups of these kinds, longest first, and of single days."""
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


@lru_cache(maxsize=1024)
def _index(bucket: str) -> int:
    return -1 if bucket == _ZERO else int(bucket[1:])


@lru_cache(maxsize=1024)
def _value(index: int) -> int:
    return 0 if index < 0 else round(2 * _GROWTH**index / (_GROWTH + 1))
