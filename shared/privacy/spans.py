"""Findings of the recognizers, and which of them stand when they overlap."""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """`text[start:end]` is a value of `kind`. The higher `rank`, the more specific is the evidence for it."""

    start: int
    end: int
    kind: str
    rank: int = 0

    def moved(self, distance: int) -> "Span":
        """The same finding in a text that has `distance` more characters in front."""
        return Span(self.start + distance, self.end + distance, self.kind, self.rank)


# What must not be taken apart by anything longer: the password within `scheme://user:password@host`.
UNBREAKABLE = 100


def merge(spans: Iterable[Span]) -> list[Span]:
    """Spans that do not overlap, in order: unbreakable ones first, then the longest, then the most specific."""
    ordered = sorted(
        spans, key=lambda span: (span.rank < UNBREAKABLE, span.start - span.end, -span.rank, span.start, span.kind)
    )
    kept: list[tuple[int, int, Span]] = []
    for span in ordered:
        position = bisect_left(kept, (span.end,))
        if position and kept[position - 1][1] > span.start:
            continue
        insort(kept, (span.start, span.end, span))
    return [span for _, _, span in kept]
