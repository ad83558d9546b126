"""Sections to chunks: pieces small enough to be one thought, never cut within a sentence where that can be avoided."""

from dataclasses import dataclass

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from services.rag.sections import Section

CHUNK_CHARACTERS = (400, 900)


@dataclass(frozen=True)
class Chunk:
    """A piece of a document. `headings` is the path it stands under, outermost first."""

    headings: tuple[str, ...]
    text: str

    @property
    def context(self) -> str:
        """The headings as one line, `Benefits > Leave`."""
        return " > ".join(self.headings)


def split(sections: list[Section]) -> list[Chunk]:
    """The chunks of a document in reading order."""
    plain, markdown = TextSplitter(CHUNK_CHARACTERS), MarkdownSplitter(CHUNK_CHARACTERS)
    chunks: list[Chunk] = []
    for section in sections:
        splitter = markdown if section.markdown else plain
        pieces = [piece for piece in splitter.chunks(section.text) if any(map(str.isalnum, piece))]
        chunks.extend(Chunk(section.headings, piece) for piece in pieces)
    return chunks
