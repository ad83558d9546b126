"""Messages in work, and what becomes of them when their partition is taken away and given back."""

from collections.abc import Iterable

from aiokafka import ConsumerRecord, TopicPartition

from shared.messaging.partition import Partition

_LATE_LIMIT = 10_000

_Place = tuple[TopicPartition, int, int]


class Work:
    """One record being handled, for a partition that may change while it is."""

    __slots__ = ("partition", "record")

    def __init__(self, partition: Partition, record: ConsumerRecord) -> None:
        self.partition = partition
        self.record = record

    @property
    def abandoned(self) -> bool:
        """Whether the partition was taken away: nobody commits this any more, its next owner gets it again."""
        return not self.partition.active

    @property
    def place(self) -> _Place:
        """Which record this is. The time is part of it, since a topic made anew begins at offset 0 again."""
        return self.partition.topic_partition, self.record.offset, self.record.timestamp


class CarriedOver:
    """Work that a rebalance cut off, in case this member gets the same partition again, as it mostly does.

    The record then comes again from the committed offset on. What is still in work is not begun a second time, and
    what was finished meanwhile counts as finished: a rebalance repeats only what moves to another member.
    """

    def __init__(self) -> None:
        self._open: dict[_Place, Work] = {}
        self._late: set[_Place] = set()

    def revoked(self, works: Iterable[Work]) -> None:
        """All partitions go; `works` is what is in work now."""
        self._open = {work.place: work for work in works}
        if len(self._late) > _LATE_LIMIT:
            self._late.clear()

    def ended(self, work: Work, finished: bool) -> None:
        """`work` has ended without a partition to tell."""
        if self._open.pop(work.place, None) is work and finished:
            self._late.add(work.place)

    def resume(self, partition: Partition, record: ConsumerRecord) -> bool:
        """Whether `record` is in work or finished already; then the new assignment's `partition` knows of it now."""
        if not self._open and not self._late:
            return False
        place = (partition.topic_partition, record.offset, record.timestamp)
        if place in self._late:
            self._late.discard(place)
            partition.tracker.begin(record.offset)
            partition.tracker.finish(record.offset)
            return True
        work = self._open.pop(place, None)
        if work is None:
            return False
        partition.tracker.begin(record.offset)
        partition.in_flight += 1
        work.partition.in_flight -= 1
        work.partition = partition
        return True

    def forget(self) -> None:
        """The log is gone: the same place in a new one is another record."""
        self._open, self._late = {}, set()
