"""Finds further occurrences of values that are known to be personal, in time linear in the text."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from shared.privacy.placeholders import KINDS, PLACEHOLDER, PlaceholderMap, parts_of, placeholders_in
from shared.privacy.recognizers.contact_details import find_emails, find_ip_addresses
from shared.privacy.recognizers.credentials import find_secrets
from shared.privacy.recognizers.identity_numbers import find_identity_numbers
from shared.privacy.recognizers.payment_numbers import find_cards, find_ibans
from shared.privacy.recognizers.phone_numbers import find_phone_numbers
from shared.privacy.recognizers.spans import UNBREAKABLE, Span, folded, lowered, merge, without_invisible

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


__all__ = ["KINDS", "PLACEHOLDER", "PlaceholderMap", "find", "placeholders_in", "redact", "redact_all"]

_LITERAL = "LITERAL"


def redact(
    text: str, placeholders: PlaceholderMap, *, redacted_before: bool = False, every_known_value: bool = False
) -> str:
    """`text` with placeholders for its personal values; new ones are added to `placeholders`.

    Text of a user's own that looks like a placeholder is a literal: it stays as it is when its number is free, and
    gets a placeholder itself when it is not, so `restore(redact(text, map), map.values()) == text` for any text.
    With `redacted_before` the text was redacted with this map or one that it continues: its placeholders are
    placeholders and stay. `every_known_value` takes out the values of the map wherever they stand, also short ones
    and plain words, which otherwise are only taken where they are recognized; for text that comes from inside.
    """
    return redact_all([text], placeholders, redacted_before=redacted_before, every_known_value=every_known_value)[0]


def redact_all(
    texts: Sequence[str],
    placeholders: PlaceholderMap,
    *,
    redacted_before: bool = False,
    every_known_value: bool = False,
) -> list[str]:
    """`redact` for the texts of one upgrade together, in their order.

    A value that one text shows for what it is (`my SSN is …`) is found in the others too, also where it stands bare.
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
                placeholders.keep_clear_of(*parts_of(value))
            else:
                placeholders.placeholder_for_literal(*parts_of(value))
    return [
        _replaced(text, _with_known_values(text, spans, known), placeholders, redacted_before)
        for text, spans in zip(texts, found, strict=True)
    ]


def find(text: str) -> list[Span]:
    """The personal values and secrets in `text`, in order and without overlaps."""
    plain = folded(text)
    found = _recognized(plain)
    # Both are needed: a zero-width space may stand within a value, and may part it from a word.
    if visible := without_invisible(plain):
        found += [visible.original_span(span) for span in _recognized(visible.text)]
    return merge(found)


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


def _with_known_values(text: str, spans: list[Span], known: KnownValues) -> list[Span]:
    """`spans` with the further occurrences of known values, also those that touch what is taken out."""
    kept = merge([*spans, *known.find(text)])
    gaps = [(left.end, right.start) for left, right in pairwise([_edge(0), *kept, _edge(len(text))])]
    while gaps:
        start, end = gaps.pop()
        found = merge(span.moved(start) for span in known.find(text[start:end]))
        if found:
            kept += found
            gaps += [(left.end, right.start) for left, right in pairwise([_edge(start), *found, _edge(end)])]
    return merge(kept)


def _edge(position: int) -> Span:
    return Span(position, position, "")


def _literals(text: str, unbreakable: bool) -> list[Span]:
    rank = UNBREAKABLE if unbreakable else UNBREAKABLE - 1
    return [Span(match.start(), match.end(), _LITERAL, rank) for match in PLACEHOLDER.finditer(text)]


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
