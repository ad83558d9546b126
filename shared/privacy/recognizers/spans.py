"""Spans found by recognizers: how overlaps are resolved, and how recognizers' input text maps to the original."""

import re
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from dataclasses import dataclass

# The rank of a span that no longer span may replace: the password in `scheme://user:password@host`.
UNBREAKABLE = 100

# The digit zero of scripts whose ten digits have consecutive code points.
_ZEROS = (
    0x660, 0x6F0, 0x7C0, 0x966, 0x9E6, 0xA66, 0xAE6, 0xB66, 0xBE6, 0xC66, 0xCE6, 0xD66, 0xE50, 0xED0, 0xF20, 0x1040,
    0x17E0, 0x1810, 0xFF10,
)  # fmt: skip
_EQUIVALENTS = {
    " ": "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000\t",
    "-": "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d",
    "+": "\uff0b\ufe62",
    "@": "\uff20\ufe6b",
    ".": "\uff0e\u3002",
    ":": "\uff1a\ufe55",
    "=": "\uff1d\ufe66",
    "(": "\uff08",
    ")": "\uff09",
    "/": "\uff0f\u2044",
    "#": "\uff03",
    "_": "\uff3f",
    '"': "\u201c\u201d\u201e\u00ab\u00bb\uff02",
    "'": "\u2018\u2019\uff07",
    ",": "\uff0c\u3001",
    ";": "\uff1b",
}
_FOLDING = {ord(other): ascii_one for ascii_one, others in _EQUIVALENTS.items() for other in others}
_FOLDING |= {zero + digit: str(digit) for zero in _ZEROS for digit in range(10)}
_FOLDING |= {0xFF21 + letter: chr(ord("A") + letter) for letter in range(26)}
_FOLDING |= {0xFF41 + letter: chr(ord("a") + letter) for letter in range(26)}

# Soft hyphen, zero-width space, non-joiner and joiner, word joiner, byte order mark.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")


@dataclass(frozen=True, slots=True)
class Span:
    """`text[start:end]` is a value of `kind`. A higher `rank` means more specific evidence."""

    start: int
    end: int
    kind: str
    rank: int = 0

    def moved(self, distance: int) -> "Span":
        """Returns the span shifted right by `distance`."""
        return Span(self.start + distance, self.end + distance, self.kind, self.rank)


def merge(spans: Iterable[Span]) -> list[Span]:
    """Returns non-overlapping spans in order. Unbreakable spans win, then longer ones, then those of higher rank."""
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


def folded(text: str) -> str:
    """Returns `text` with full-width letters, all scripts' digits, dashes, spaces and quotes as ASCII; same length."""
    return text if text.isascii() else text.translate(_FOLDING)


def lowered(text: str) -> str:
    """Returns `text` in lower case with the same length, which `str.lower` does not guarantee."""
    lower = text.lower()
    return lower if len(lower) == len(text) else "".join(c if len(c.lower()) > 1 else c.lower() for c in text)


@dataclass(frozen=True)
class VisibleText:
    """A text without its invisible characters. `gaps[i]` is the position in `text` where the i-th was; ascending."""

    text: str
    gaps: list[int]

    def original_span(self, span: Span) -> Span:
        """Returns the span with positions in the original, without invisible characters at its ends."""
        start = span.start + bisect_right(self.gaps, span.start)
        end = span.end + bisect_right(self.gaps, span.end - 1)
        return Span(start, end, span.kind, span.rank)


def without_invisible(original: str) -> VisibleText | None:
    """Returns the text without its invisible characters, or None if it has none."""
    if original.isascii() or not _INVISIBLE.search(original):
        return None
    gaps = [match.start() - before for before, match in enumerate(_INVISIBLE.finditer(original))]
    return VisibleText(_INVISIBLE.sub("", original), gaps)
