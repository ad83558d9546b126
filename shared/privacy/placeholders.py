"""Typed placeholders such as `<EMAIL_1>`: numbering, the values they stand for, and putting values back into text."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

KINDS = ("EMAIL", "PHONE", "CARD", "IBAN", "NATIONAL_ID", "TAX_ID", "IP", "SECRET")

PLACEHOLDER = re.compile(r"<(" + "|".join(KINDS) + r")_([1-9][0-9]{0,8})>")

# A literal with a higher number is replaced, so that one odd literal does not push up all later numbers.
_HIGHEST_KEPT_LITERAL = 999


class PlaceholderMap:
    """The placeholders of one upgrade. The same value of a kind always has the same placeholder.

    Values are compared exactly: `Ann@x.org` and `ann@x.org` get two placeholders, so each is restored as typed.
    """

    def __init__(self, start_after: Mapping[str, int] | None = None) -> None:
        """`start_after` holds the highest number per kind that is already in use elsewhere."""
        self._start_after = {kind: number for kind, number in (start_after or {}).items() if number > 0}
        self._last = dict(self._start_after)
        self._values: dict[str, str] = {}
        self._placeholders: dict[tuple[str, str], str] = {}

    def __len__(self) -> int:
        return len(self._values)

    def placeholder_for(self, kind: str, value: str) -> str:
        """Returns the placeholder for `value`, a new one if the value is new."""
        known = self._placeholders.get((kind, value))
        if known is not None:
            return known
        number = self._last.get(kind, 0) + 1
        while f"<{kind}_{number}>" in self._values:
            number += 1
        self._last[kind] = number
        return self._add(kind, f"<{kind}_{number}>", value)

    def placeholder_for_literal(self, kind: str, number: int) -> str:
        """Returns the replacement for the literal text `<KIND_number>`: the literal itself if its number is free."""
        literal = f"<{kind}_{number}>"
        known = self._placeholders.get((kind, literal))
        if known is not None:
            return known
        in_use = number <= self._start_after.get(kind, 0) or literal in self._values
        if in_use or number > _HIGHEST_KEPT_LITERAL:
            return self.placeholder_for(kind, literal)
        return self._add(kind, literal, literal)

    def reserve(self, kind: str, number: int) -> None:
        """Numbers new values after `<KIND_number>`, which occurs in text that was redacted before."""
        if number <= _HIGHEST_KEPT_LITERAL:
            self._last[kind] = max(self._last.get(kind, 0), number)

    def counts(self) -> dict[str, int]:
        """Returns the highest number in use per kind, which another map takes as `start_after`."""
        counts = dict(self._last)
        for placeholder in self._values:
            kind, number = parts_of(placeholder)
            counts[kind] = max(counts.get(kind, 0), number)
        return counts

    def values(self) -> dict[str, str]:
        """Returns the value of each placeholder, in the order in which they were added."""
        return dict(self._values)

    def to_json(self) -> str:
        """Returns the map as JSON. It contains the values: seal it before storing or sending it."""
        return json.dumps({"startAfter": self._start_after, "last": self._last, "values": self._values})

    @staticmethod
    def from_json(text: str) -> "PlaceholderMap":
        """Parses the output of `to_json`. Raises ValueError for anything else."""
        try:
            stored = json.loads(text)
            placeholders = PlaceholderMap(stored["startAfter"])
            placeholders._last = {str(kind): int(number) for kind, number in stored["last"].items()}
            for placeholder, value in stored["values"].items():
                placeholders._add(parts_of(placeholder)[0], placeholder, str(value))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("not a placeholder map") from error
        return placeholders

    def _add(self, kind: str, placeholder: str, value: str) -> str:
        self._values[placeholder] = value
        self._placeholders.setdefault((kind, value), placeholder)
        return placeholder


def parts_of(placeholder: str) -> tuple[str, int]:
    """Returns the kind and number of a placeholder. Raises ValueError for other text."""
    match = PLACEHOLDER.fullmatch(placeholder)
    if match is None:
        raise ValueError("not a placeholder")
    return match[1], int(match[2])


def placeholders_in(texts: Iterable[str] | str) -> list[str]:
    """Returns every occurrence of a placeholder in one or several texts, in order."""
    joined = [texts] if isinstance(texts, str) else texts
    return [match[0] for text in joined for match in PLACEHOLDER.finditer(text)]


def restore(text: str, values: Mapping[str, str]) -> str:
    """Returns `text` with the placeholders in `values` replaced by their values; others stay.

    Values that look like placeholders are not replaced again.
    """
    return PLACEHOLDER.sub(lambda match: values.get(match[0], match[0]), text)


@dataclass(frozen=True)
class PlaceholderReport:
    """How a model's answer misused placeholders. Each list is in order of first appearance, without repeats."""

    dropped: tuple[str, ...] = ()
    invented: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.dropped or self.invented or self.doubled)


def check_placeholders(
    expected: Iterable[str] | str, text: str, *, known: Iterable[str] | str = ()
) -> PlaceholderReport:
    """Compares the placeholders of a prompt (`expected`: its text, or a list of them) with those of the answer `text`.

    - dropped: in `expected` but not in `text`.
    - invented: in `text`, but neither in `expected` nor in `known` (texts or placeholders of the conversation, the
      documents and so on, which an answer may use but need not).
    - doubled: in `expected`, and at least twice as often in `text`. A model may mention something once more in a long
      prompt (two mentions become three); one mention that becomes two deserves a warning, since the value is then
      restored in a place where the user did not write it. Placeholders that occur only in `known` may be used any
      number of times.
    """
    wanted = Counter(placeholders_in(expected))
    allowed = wanted.keys() | set(placeholders_in(known))
    found = Counter(placeholders_in(text))
    return PlaceholderReport(
        dropped=tuple(placeholder for placeholder in wanted if placeholder not in found),
        invented=tuple(placeholder for placeholder in found if placeholder not in allowed),
        doubled=tuple(p for p, times in found.items() if p in wanted and times >= 2 * wanted[p]),
    )
