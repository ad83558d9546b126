"""What the preparation process hands back: a document without personal values and injected instructions."""

import re
from dataclasses import asdict, dataclass
from typing import Any

from shared.privacy.placeholders import PLACEHOLDER


@dataclass(frozen=True)
class PreparedChunk:
    """A chunk, redacted. `values` are the placeholders that it and its headings use; they are to be sealed.

    `injections` counts the sentences that were taken out of the passage this chunk is from.
    """

    context: str
    text: str
    values: dict[str, str]
    injections: int


@dataclass(frozen=True)
class PreparedDocument:
    """A document ready to be embedded. `title` is redacted, its values are `title_values`."""

    title: str
    title_values: dict[str, str]
    chunks: list[PreparedChunk]
    injections: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(stored: dict[str, Any]) -> "PreparedDocument":
        chunks = [PreparedChunk(**chunk) for chunk in stored["chunks"]]
        return PreparedDocument(stored["title"], stored["title_values"], chunks, stored["injections"])


def searchable(text: str) -> str:
    """The text as it is embedded and searched by words: a placeholder counts as the kind of thing it stands for."""
    return re.sub(r"\s+", " ", PLACEHOLDER.sub(lambda match: match[1].lower().replace("_", " "), text)).strip()
