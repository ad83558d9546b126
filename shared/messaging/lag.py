"""The lag of a consumer as a metric, for the partitions it owns at the moment."""

from collections.abc import Mapping

from aiokafka import TopicPartition

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
