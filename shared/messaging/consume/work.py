"""Assigned partitions, the messages in work on each, and the offset that may be committed."""

from collections import deque
from collections.abc import Iterable

from aiokafka import ConsumerRecord, TopicPartition


class OffsetTracker:
    """Offsets begin in rising order (gaps allowed) and finish in any; `committable` is the lowest unfinished one.

    Beginning and finishing cost O(1) amortised. What is kept in memory is the span above the lowest unfinished
    offset, which is for the caller to bound: see `span`.
    """

    __slots__ = ("_finished", "_open", "last")

    def __init__(self) -> None:
        self._open: deque[int] = deque()
        self._finished: set[int] = set()
        self.last = -1
        """The highest offset that has begun, -1 before the first."""

    @property
    def span(self) -> int:
        """How many records stand between the committable offset and the last one that has begun."""
        return len(self._open)

    @property
    def committable(self) -> int | None:
        """The offset to commit, which is that of the next record to read after a restart; None before the first."""
        if self._open:
            return self._open[0]
        return self.last + 1 if self.last >= 0 else None

    def begin(self, offset: int) -> None:
        """Raises ValueError when `offset` is not above all that have begun."""
        if offset <= self.last:
            raise ValueError(f"offset {offset} after {self.last}")
        self.last = offset
        self._open.append(offset)

    def finish(self, offset: int) -> None:
        """Marks one that has begun and not finished yet as finished."""
        waiting = self._open
        if waiting[0] != offset:
            self._finished.add(offset)
            return
        waiting.popleft()
        finished = self._finished
        while waiting and waiting[0] in finished:
            finished.discard(waiting.popleft())


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
