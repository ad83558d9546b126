"""Observations of a histogram, gathered and written in one go: one observation costs more than a task switch."""
# ruff: noqa: SLF001

from bisect import bisect_left
from typing import Any

from prometheus_client import Histogram


class GatheredLatency:
    """Counts what is observed, and adds it to the histogram's child at `flush`. For one event loop, no thread."""

    def __init__(self, histogram: Histogram, **labels: str) -> None:
        # The client has no call that adds many observations; its version is pinned for this.
        self._child: Any = histogram.labels(**labels)
        self._bounds: list[float] = list(self._child._upper_bounds)
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def flush(self) -> None:
        for place, count in enumerate(self._counts):
            if count:
                self._child._buckets[place].inc(count)
                self._counts[place] = 0
        if self._sum:
            self._child._sum.inc(self._sum)
            self._sum = 0.0
