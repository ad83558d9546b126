"""One assigned partition of a group member, for as long as that assignment lasts."""

from aiokafka import TopicPartition

from shared.messaging.offset_tracker import OffsetTracker


class Partition:
    """Offsets of one partition within one assignment.

    A new assignment makes new objects. `active` turns False when the partition is revoked, or its log is gone: work
    that finishes later still calls `tracker.finish`, but nobody commits from here any more.
    """

    __slots__ = ("active", "committed", "full", "in_flight", "topic_partition", "tracker")

    def __init__(self, topic_partition: TopicPartition) -> None:
        self.topic_partition = topic_partition
        self.tracker = OffsetTracker()
        self.active = True
        self.full = False
        self.in_flight = 0
        self.committed: int | None = None

    def to_commit(self) -> int | None:
        """The offset that is worth a commit, or None when the committed one is still right."""
        committable = self.tracker.committable
        return committable if self.active and committable != self.committed else None
