"""Putting values back in for their placeholders, and checking what a model did with the placeholders."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shared.privacy.placeholders import PLACEHOLDER, placeholders_in


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
