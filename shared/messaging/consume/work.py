"""Bookkeeping of records in progress: by partition, which offset may be committed, and what a rebalance interrupts."""

from collections import deque
from collections.abc import Iterable

from aiokafka import ConsumerRecord, TopicPartition

_LATE_LIMIT = 10_000

_RecordId = tuple[TopicPartition, int, int]
"""Partition, offset and timestamp: a topic that was created anew starts at offset 0 again."""


class OffsetTracker:
    """Tracks unfinished offsets of a partition. They begin in rising order, gaps allowed, and finish in any order.

    Each operation costs O(1) amortised. Memory grows with `span`, which the caller limits.
    """

    __slots__ = ("_finished", "_open", "last")

    def __init__(self) -> None:
        self._open: deque[int] = deque()
        self._finished: set[int] = set()
        self.last = -1
        """The highest offset that has begun, -1 before the first."""

    @property
    def span(self) -> int:
        """The number of records from the committable offset to the last one that has begun."""
        return len(self._open)

    @property
    def committable(self) -> int | None:
        """The lowest unfinished offset, from which to read after a restart; None before the first record."""
        if self._open:
            return self._open[0]
        return self.last + 1 if self.last >= 0 else None

    def begin(self, offset: int) -> None:
        """Raises ValueError unless `offset` is higher than all before."""
        if offset <= self.last:
            raise ValueError(f"offset {offset} after {self.last}")
        self.last = offset
        self._open.append(offset)

    def finish(self, offset: int) -> None:
        """Marks an offset as finished that has begun and is not finished."""
        waiting = self._open
        if waiting[0] != offset:
            self._finished.add(offset)
            return
        waiting.popleft()
        finished = self._finished
        while waiting and waiting[0] in finished:
            finished.discard(waiting.popleft())


class Partition:
    """The state of one partition during one assignment; a new assignment creates new objects.

    `active` turns False when the partition is revoked or its log is gone. Records that finish later still call
    `tracker.finish`, but nothing is committed.
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
        """The offset to commit, or None when it is committed already or the partition is not active."""
        committable = self.tracker.committable
        return committable if self.active and committable != self.committed else None


class Work:
    """One record in progress. `partition` changes when the record is carried over to a new assignment."""

    __slots__ = ("partition", "record")

    def __init__(self, partition: Partition, record: ConsumerRecord) -> None:
        self.partition = partition
        self.record = record

    @property
    def abandoned(self) -> bool:
        """Whether the partition is gone, so that the record will be delivered again."""
        return not self.partition.active

    @property
    def record_id(self) -> _RecordId:
        return _record_id(self.partition, self.record)


class CarriedOver:
    """Records in progress at a rebalance, for the common case that this member gets the same partitions again.

    Reading then resumes at the committed offset. A record still in progress is not started a second time, and one that
    finished meanwhile counts as finished, so a rebalance repeats only records that move to another member.
    """

    def __init__(self) -> None:
        self._open: dict[_RecordId, Work] = {}
        self._late: set[_RecordId] = set()

    def revoked(self, works: Iterable[Work]) -> None:
        """Keeps `works`, the records in progress, when all partitions are revoked."""
        self._open = {work.record_id: work for work in works}
        if len(self._late) > _LATE_LIMIT:
            self._late.clear()

    def ended(self, work: Work, finished: bool) -> None:
        """Notes the end of an abandoned record."""
        if self._open.pop(work.record_id, None) is work and finished:
            self._late.add(work.record_id)

    def resume(self, partition: Partition, record: ConsumerRecord) -> bool:
        """Whether `record` is in progress or finished already. If so, it is registered at `partition`."""
        if not self._open and not self._late:
            return False
        record_id = _record_id(partition, record)
        if record_id in self._late:
            self._late.discard(record_id)
            partition.tracker.begin(record.offset)
            partition.tracker.finish(record.offset)
            return True
        work = self._open.pop(record_id, None)
        if work is None:
            return False
        partition.tracker.begin(record.offset)
        partition.in_flight += 1
        work.partition.in_flight -= 1
        work.partition = partition
        return True

    def clear(self) -> None:
        """Forgets all records, because their log is gone."""
        self._open, self._late = {}, set()


def _record_id(partition: Partition, record: ConsumerRecord) -> _RecordId:
    return partition.topic_partition, record.offset, record.timestamp
