"""Finds further occurrences of values that are known to be personal, in time linear in the text."""

import re
from collections.abc import Iterator

from shared.privacy.placeholders import PLACEHOLDER
from shared.privacy.spans import Span

_WORD = re.compile(r"[0-9A-Za-z]+|[^\W0-9A-Za-z_]+")
_TELLING_LENGTH = 6
# So few are looked for one by one: searching a string costs next to nothing beside going through its words.
_FEW = 16


class KnownValues:
    """Values to look for, each with its kind.

    Values are looked up by their longest word. Only telling ones are taken (6 characters or more, with a digit or a
    special character): a password that is a common word must not empty the prompt of that word. `every_length` takes
    all, for text whose placeholders only the user will see restored.
    """

    def __init__(self, *, every_length: bool) -> None:
        self._every_length = every_length
        self._kinds: dict[str, str] = {}
        # longest word -> the (offset of that word, length) that values with it have
        self._shapes: dict[str, set[tuple[int, int]]] = {}

    def add(self, value: str, kind: str) -> None:
        """Take `value` into the search; the first kind that it was found as stays."""
        if value in self._kinds or PLACEHOLDER.fullmatch(value) or not self._is_telling(value):
            return
        words = [(match.end() - match.start(), match.start(), match[0]) for match in _WORD.finditer(value)]
        if words:
            _, offset, word = max(words)
            self._kinds[value] = kind
            self._shapes.setdefault(word, set()).add((offset, len(value)))

    def find(self, text: str) -> Iterator[Span]:
        """Where the values stand in `text`, as whole words."""
        if len(self._kinds) <= _FEW:
            yield from self._find_one_by_one(text)
            return
        for match in _WORD.finditer(text):
            for offset, length in self._shapes.get(match[0], ()):
                start, end = match.start() - offset, match.start() - offset + length
                kind = self._kinds.get(text[start:end]) if start >= 0 else None
                if kind and _whole(text, start, end):
                    yield Span(start, end, kind, rank=1)

    def _find_one_by_one(self, text: str) -> Iterator[Span]:
        for value, kind in self._kinds.items():
            start = text.find(value)
            while start != -1:
                end = start + len(value)
                if _whole(text, start, end):
                    yield Span(start, end, kind, rank=1)
                start = text.find(value, start + 1)

    def _is_telling(self, value: str) -> bool:
        if self._every_length:
            return len(value) >= 2
        return len(value) >= _TELLING_LENGTH and not value.isalpha()


def _whole(text: str, start: int, end: int) -> bool:
    return not (_joined(text, start - 1, start) or _joined(text, end - 1, end))


def _joined(text: str, left: int, right: int) -> bool:
    if left < 0 or right >= len(text):
        return False
    return text[left].isascii() and text[right].isascii() and text[left].isalnum() and text[right].isalnum()
