"""Typed placeholders such as `<EMAIL_1>`, the values they stand for, and how values are put back into an answer."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

KINDS = ("EMAIL", "PHONE", "CARD", "IBAN", "NATIONAL_ID", "TAX_ID", "IP", "SECRET")

PLACEHOLDER = re.compile(r"<(" + "|".join(KINDS) + r")_([1-9][0-9]{0,8})>")

# A literal with a higher number gets another one, so that one odd literal does not drive up all later numbers.
_HIGHEST_KEPT_LITERAL = 999


class PlaceholderMap:
    """The placeholders of one upgrade. The same value of a kind always has the same placeholder.

    Values are compared exactly: `Ann@x.org` and `ann@x.org` get two placeholders, so each comes back as it was typed.
    `start_after` holds numbers per kind that others have in use already.
    """

    def __init__(self, start_after: Mapping[str, int] | None = None) -> None:
        self._start_after = {kind: number for kind, number in (start_after or {}).items() if number > 0}
        self._last = dict(self._start_after)
        self._values: dict[str, str] = {}
        self._placeholders: dict[tuple[str, str], str] = {}

    def __len__(self) -> int:
        return len(self._values)

    def placeholder_for(self, kind: str, value: str) -> str:
        """The placeholder that stands for `value`; a new one when the value is new."""
        known = self._placeholders.get((kind, value))
        if known is not None:
            return known
        number = self._last.get(kind, 0) + 1
        while f"<{kind}_{number}>" in self._values:
            number += 1
        self._last[kind] = number
        return self._add(kind, f"<{kind}_{number}>", value)

    def placeholder_for_literal(self, kind: str, number: int) -> str:
        """What stands for the text `<KIND_number>` that somebody typed: itself, when that is nobody else's."""
        literal = f"<{kind}_{number}>"
        known = self._placeholders.get((kind, literal))
        if known is not None:
            return known
        in_use = number <= self._start_after.get(kind, 0) or literal in self._values
        if in_use or number > _HIGHEST_KEPT_LITERAL:
            return self.placeholder_for(kind, literal)
        return self._add(kind, literal, literal)

    def keep_clear_of(self, kind: str, number: int) -> None:
        """Never hand out `<KIND_number>` for a new value: a text holds it that was redacted before."""
        if number <= _HIGHEST_KEPT_LITERAL:
            self._last[kind] = max(self._last.get(kind, 0), number)

    def counts(self) -> dict[str, int]:
        """The highest number in use per kind; what `start_after` of another map takes."""
        counts = dict(self._last)
        for placeholder in self._values:
            kind, number = parts_of(placeholder)
            counts[kind] = max(counts.get(kind, 0), number)
        return counts

    def values(self) -> dict[str, str]:
        """Each placeholder with the value it stands for, in the order in which they were found."""
        return dict(self._values)

    def to_json(self) -> str:
        """The map as JSON. It holds the values: seal it before it is stored or sent."""
        return json.dumps({"startAfter": self._start_after, "last": self._last, "values": self._values})

    @staticmethod
    def from_json(text: str) -> "PlaceholderMap":
        """The map that `to_json` wrote. Raises ValueError for anything else."""
        try:
            stored = json.loads(text)
            placeholders = PlaceholderMap(stored["startAfter"])
            placeholders._last = {str(kind): int(number) for kind, number in stored["last"].items()}
            for placeholder, value in stored["values"].items():
                placeholders._add(parts_of(placeholder)[0], placeholder, str(value))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("not a placeholder map") from error
        return placeholders

    def merged(self, *others: "PlaceholderMap") -> "PlaceholderMap":
        """A new map with the values of all. Raises ValueError when two give one placeholder different values."""
        result = PlaceholderMap(self._start_after)
        for placeholders in (self, *others):
            for kind, number in placeholders.counts().items():
                result._last[kind] = max(result._last.get(kind, 0), number)
            for placeholder, value in placeholders.values().items():
                if result._values.get(placeholder, value) != value:
                    raise ValueError(f"{placeholder} stands for two values")
                result._add(parts_of(placeholder)[0], placeholder, value)
        return result

    def _add(self, kind: str, placeholder: str, value: str) -> str:
        self._values[placeholder] = value
        self._placeholders.setdefault((kind, value), placeholder)
        return placeholder


def parts_of(placeholder: str) -> tuple[str, int]:
    """Kind and number of a placeholder. Raises ValueError when it is none."""
    match = PLACEHOLDER.fullmatch(placeholder)
    if match is None:
        raise ValueError("not a placeholder")
    return match[1], int(match[2])


def placeholders_in(texts: Iterable[str] | str) -> list[str]:
    """Every occurrence of a placeholder in a text or in several, in order."""
    joined = [texts] if isinstance(texts, str) else texts
    return [match[0] for text in joined for match in PLACEHOLDER.finditer(text)]


def restore(text: str, values: Mapping[str, str]) -> str:
    """`text` with each placeholder of `values` replaced by its value; others stay as they are.

    One pass: a value that itself looks like a placeholder is put in as it is and not replaced again.
    """
    return PLACEHOLDER.sub(lambda match: values.get(match[0], match[0]), text)


@dataclass(frozen=True)
class PlaceholderReport:
    """What a model did with placeholders, each list in order of first appearance and without repeats."""

    dropped: tuple[str, ...] = ()
    invented: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.dropped or self.invented or self.doubled)


def check_placeholders(
    expected: Iterable[str] | str, text: str, *, known: Iterable[str] | str = ()
) -> PlaceholderReport:
    """Compare the placeholders of the prompt (`expected`: its text, or a list of them) with those of the answer `text`.

    - dropped: in `expected` and nowhere in `text`.
    - invented: in `text`, but neither in `expected` nor in `known` (texts or placeholders of the conversation, the
      documents and so on, which an answer may use but need not).
    - doubled: in `text` at least twice as often as in `expected`, and there at all. A model may well name something
      once more in a long prompt (two mentions become three); one mention that becomes two is worth a warning, since
      the value is then put in at a place where the user never had it. Placeholders that only `known` has may be used
      any number of times.
    """
    wanted = Counter(placeholders_in(expected))
    allowed = wanted.keys() | set(placeholders_in(known))
    found = Counter(placeholders_in(text))
    return PlaceholderReport(
        dropped=tuple(placeholder for placeholder in wanted if placeholder not in found),
        invented=tuple(placeholder for placeholder in found if placeholder not in allowed),
        doubled=tuple(p for p, times in found.items() if p in wanted and times >= 2 * wanted[p]),
    )
