"""Metrics of a consumer: its lag, and its latencies gathered before they are written."""

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from aiokafka import TopicPartition
from prometheus_client import Histogram

from shared.observability.metrics import CONSUMER_LAG


class LagGauge:
    """Sets the gauge of the partitions reported, and removes those that were reported before and are not owned now."""

    def __init__(self) -> None:
        self._reported: set[TopicPartition] = set()

    def report(self, lag: Mapping[TopicPartition, int]) -> None:
        """Records that are not finished yet, by partition."""
        for gone in self._reported - lag.keys():
            CONSUMER_LAG.remove(gone.topic, str(gone.partition))
        for found, records in lag.items():
            CONSUMER_LAG.labels(topic=found.topic, partition=str(found.partition)).set(records)
        self._reported = set(lag)


# ruff: noqa: SLF001


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
