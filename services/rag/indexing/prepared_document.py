"""The result of preparing an upload, as the preparation process returns it: redacted chunks, ready to be embedded."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class PreparedChunk:
    """A redacted chunk. `values` are the values behind the placeholders in it and in its headings.

    `injections` counts the sentences that were removed from the section this chunk is part of.
    """

    context: str
    text: str
    values: dict[str, str]
    injections: int


@dataclass(frozen=True)
class PreparedDocument:
    """A redacted document. `title_values` are the values behind the placeholders in its title."""

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
