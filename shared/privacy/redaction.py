"""Replaces personal values and secrets in text with typed placeholders such as `<EMAIL_1>`."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from shared.privacy.placeholders import PLACEHOLDER, PlaceholderMap, parts_of
from shared.privacy.recognizers.contact_details import find_emails, find_ip_addresses
from shared.privacy.recognizers.credentials import find_secrets
from shared.privacy.recognizers.identity_numbers import find_identity_numbers
from shared.privacy.recognizers.payment_numbers import find_cards, find_ibans
from shared.privacy.recognizers.phone_numbers import find_phone_numbers
from shared.privacy.recognizers.spans import UNBREAKABLE, Span, folded, lowered, merge, without_invisible

_LITERAL = "LITERAL"
_WORD = re.compile(r"[0-9A-Za-z]+|[^\W0-9A-Za-z_]+")
_DISTINCTIVE_LENGTH = 6
# Up to this many known values, one string search per value is faster than a look-up of every word of the text.
_SEARCH_ONE_BY_ONE = 16


def redact(
    text: str, placeholders: PlaceholderMap, *, redacted_before: bool = False, every_known_value: bool = False
) -> str:
    """Returns `text` with its personal values replaced by placeholders; new ones are added to `placeholders`.

    Text that only looks like a placeholder is a literal. It stays if its number is free, and otherwise gets a
    placeholder itself, so `restore(redact(text, map), map.values()) == text` holds for any text.

    `redacted_before`: the text was redacted with this map or with one that it continues, so its placeholders are kept.
    `every_known_value`: also replace values of the map that are short or plain words, wherever they occur; otherwise
    these are replaced only where a recognizer finds them. Meant for text that comes from a model.
    """
    return redact_all([text], placeholders, redacted_before=redacted_before, every_known_value=every_known_value)[0]


def redact_all(
    texts: Sequence[str],
    placeholders: PlaceholderMap,
    *,
    redacted_before: bool = False,
    every_known_value: bool = False,
) -> list[str]:
    """Redacts the texts of one upgrade together, as `redact` does, and returns them in order.

    A value that a recognizer finds in one text (`my SSN is …`) is also replaced in the others, where it may stand
    without context.
    """
    found = [merge([*_literals(text, redacted_before), *find(text)]) for text in texts]
    known = KnownValues(every_length=every_known_value)
    for placeholder, value in placeholders.values().items():
        known.add(value, parts_of(placeholder)[0])
    for text, spans in zip(texts, found, strict=True):
        for span in spans:
            value = text[span.start : span.end]
            if span.kind != _LITERAL:
                known.add(value, span.kind)
            elif redacted_before:
                placeholders.reserve(*parts_of(value))
            else:
                placeholders.placeholder_for_literal(*parts_of(value))
    return [
        _replaced(text, _with_known_values(text, spans, known), placeholders, redacted_before)
        for text, spans in zip(texts, found, strict=True)
    ]


def find(text: str) -> list[Span]:
    """Returns the personal values and secrets in `text`, ordered and without overlaps."""
    plain = folded(text)
    found = _recognized(plain)
    # Both forms are searched: an invisible character may split a value, or separate it from an adjacent word.
    if visible := without_invisible(plain):
        found += [visible.original_span(span) for span in _recognized(visible.text)]
    return merge(found)


class KnownValues:
    """Finds further occurrences of known personal values, in time linear in the length of the text.

    Values are indexed by their longest word. Only distinctive values are added (6 characters or more, with a digit or
    a special character), so that a password that is a common word is not replaced everywhere in a prompt.
    `every_length` adds all values of 2 characters or more.
    """

    def __init__(self, *, every_length: bool) -> None:
        self._every_length = every_length
        self._kinds: dict[str, str] = {}
        # longest word -> (offset of that word in the value, length of the value)
        self._shapes: dict[str, set[tuple[int, int]]] = {}

    def add(self, value: str, kind: str) -> None:
        """Adds a value to search for. A value keeps the first kind it was added with."""
        if value in self._kinds or PLACEHOLDER.fullmatch(value) or not self._is_distinctive(value):
            return
        words = [(match.end() - match.start(), match.start(), match[0]) for match in _WORD.finditer(value)]
        if words:
            _, offset, word = max(words)
            self._kinds[value] = kind
            self._shapes.setdefault(word, set()).add((offset, len(value)))

    def find(self, text: str) -> Iterator[Span]:
        """Yields the occurrences of the values in `text` as whole words."""
        if len(self._kinds) <= _SEARCH_ONE_BY_ONE:
            yield from self._find_one_by_one(text)
            return
        for match in _WORD.finditer(text):
            for offset, length in self._shapes.get(match[0], ()):
                start, end = match.start() - offset, match.start() - offset + length
                kind = self._kinds.get(text[start:end]) if start >= 0 else None
                if kind and _is_whole(text, start, end):
                    yield Span(start, end, kind, rank=1)

    def _find_one_by_one(self, text: str) -> Iterator[Span]:
        for value, kind in self._kinds.items():
            start = text.find(value)
            while start != -1:
                end = start + len(value)
                if _is_whole(text, start, end):
                    yield Span(start, end, kind, rank=1)
                start = text.find(value, start + 1)

    def _is_distinctive(self, value: str) -> bool:
        if self._every_length:
            return len(value) >= 2
        return len(value) >= _DISTINCTIVE_LENGTH and not value.isalpha()


def _recognized(plain: str) -> list[Span]:
    lower = lowered(plain)
    return [
        *find_emails(plain),
        *find_ip_addresses(plain),
        *find_phone_numbers(plain),
        *find_cards(plain),
        *find_ibans(plain),
        *find_identity_numbers(plain, lower),
        *find_secrets(plain, lower),
    ]


def _literals(text: str, unbreakable: bool) -> list[Span]:
    rank = UNBREAKABLE if unbreakable else UNBREAKABLE - 1
    return [Span(match.start(), match.end(), _LITERAL, rank) for match in PLACEHOLDER.finditer(text)]


def _with_known_values(text: str, spans: list[Span], known: KnownValues) -> list[Span]:
    """Adds further occurrences of known values, including those that adjoin a replaced value."""
    kept = merge([*spans, *known.find(text)])
    gaps = _gaps(kept, 0, len(text))
    while gaps:
        start, end = gaps.pop()
        found = merge(span.moved(start) for span in known.find(text[start:end]))
        if found:
            kept += found
            gaps += _gaps(found, start, end)
    return merge(kept)


def _gaps(spans: list[Span], start: int, end: int) -> list[tuple[int, int]]:
    """Returns the stretches between `start` and `end` that no span covers."""
    edges = [Span(start, start, ""), *spans, Span(end, end, "")]
    return [(left.end, right.start) for left, right in pairwise(edges)]


def _is_whole(text: str, start: int, end: int) -> bool:
    return not (_is_inside_word(text, start) or _is_inside_word(text, end))


def _is_inside_word(text: str, position: int) -> bool:
    """Whether ASCII letters or digits stand on both sides of `position`."""
    if position <= 0 or position >= len(text):
        return False
    left, right = text[position - 1], text[position]
    return left.isascii() and right.isascii() and left.isalnum() and right.isalnum()


def _replaced(text: str, spans: list[Span], placeholders: PlaceholderMap, redacted_before: bool) -> str:
    pieces, position = [], 0
    for span in spans:
        value = text[span.start : span.end]
        if span.kind != _LITERAL:
            replacement = placeholders.placeholder_for(span.kind, value)
        elif redacted_before:
            replacement = value
        else:
            replacement = placeholders.placeholder_for_literal(*parts_of(value))
        pieces += [text[position : span.start], replacement]
        position = span.end
    return "".join([*pieces, text[position:]])
