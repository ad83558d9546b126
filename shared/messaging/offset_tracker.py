"""Which offset of a partition may be committed while its messages finish in any order."""

from collections import deque


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
