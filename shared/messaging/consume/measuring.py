"""Metrics of a consumer: lag by partition, and a histogram whose observations are written in batches."""

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from aiokafka import TopicPartition
from prometheus_client import Histogram

from shared.observability.metrics import CONSUMER_LAG


class LagGauge:
    """The lag gauge of one consumer. Partitions that it does not report any more are removed from the gauge."""

    def __init__(self) -> None:
        self._reported: set[TopicPartition] = set()

    def report(self, lag: Mapping[TopicPartition, int]) -> None:
        """Sets the number of unfinished records by partition."""
        for gone in self._reported - lag.keys():
            CONSUMER_LAG.remove(gone.topic, str(gone.partition))
        for found, records in lag.items():
            CONSUMER_LAG.labels(topic=found.topic, partition=str(found.partition)).set(records)
        self._reported = set(lag)


class GatheredLatency:
    """Collects observations of a histogram and adds them at `flush`, which is cheaper. Not thread-safe."""

    def __init__(self, histogram: Histogram, **labels: str) -> None:
        # The client has no public way to add many observations at once; its version is pinned for this.
        self._child: Any = histogram.labels(**labels)
        self._bounds: list[float] = list(self._child._upper_bounds)  # noqa: SLF001
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def flush(self) -> None:
        for place, count in enumerate(self._counts):
            if count:
                self._child._buckets[place].inc(count)  # noqa: SLF001
                self._counts[place] = 0
        if self._sum:
            self._child._sum.inc(self._sum)  # noqa: SLF001
            self._sum = 0.0
