"""Takes personal values and secrets out of text and puts typed placeholders in their places.

What is found: mail and IP addresses, phone, card and account numbers, national and tax ids, secrets. Names and postal
addresses are not. Positions are found on a copy of the text with full-width and similar characters folded, and, where
there are any, on one without the characters that nobody sees.
"""

from collections.abc import Sequence
from itertools import pairwise

from shared.privacy.character_folding import folded, lowered, without_invisible
from shared.privacy.contact_details import find_emails, find_ip_addresses
from shared.privacy.credentials import find_secrets
from shared.privacy.identity_numbers import find_identity_numbers
from shared.privacy.known_values import KnownValues
from shared.privacy.payment_numbers import find_cards, find_ibans
from shared.privacy.phone_numbers import find_phone_numbers
from shared.privacy.placeholders import KINDS, PLACEHOLDER, PlaceholderMap, parts_of, placeholders_in
from shared.privacy.spans import UNBREAKABLE, Span, merge

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
