"""Quantiles of latencies that can be added up: counts in buckets whose bounds grow by a fixed factor.

The bucketing is that of DDSketch (Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable quantile sketch with
relative-error guarantees", PVLDB 12(12), 2019): bucket i holds (g^(i-1), g^i] with g = (1 + a) / (1 - a), and answers
with 2 g^i / (g + 1), so no answer is further than a = 2 % from the value at that rank. Unlike the paper's, the number
of buckets needs no collapsing: latencies end at 10^8 ms, which is bucket 461.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

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
