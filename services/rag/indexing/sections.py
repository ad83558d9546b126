"""Divides a document into sections of text under their headings, and sections into chunks to embed."""

from dataclasses import dataclass

from semantic_text_splitter import MarkdownSplitter, TextSplitter

MAX_HEADING_CHARACTERS = 200
CHUNK_CHARACTERS = (400, 900)


@dataclass(frozen=True)
class Section:
    """Text under one heading. `headings` is the path to it, outermost first; `markdown` says how to split the text."""

    headings: tuple[str, ...]
    text: str
    markdown: bool = False


@dataclass(frozen=True)
class Chunk:
    """A part of a section. `headings` is the path to it, outermost first."""

    headings: tuple[str, ...]
    text: str

    @property
    def context(self) -> str:
        """The headings as one line, `Benefits > Leave`."""
        return " > ".join(self.headings)


class SectionCollector:
    """Collects text in reading order and starts a new section at each heading."""

    def __init__(self, *, markdown: bool = False) -> None:
        self._markdown = markdown
        self._path: list[tuple[int, str]] = []
        self._lines: list[str] = []
        self._sections: list[Section] = []

    def heading(self, level: int, title: str) -> None:
        """Starts the section of a heading of `level` (1 is the outermost)."""
        self._close()
        title = " ".join(title.split())[:MAX_HEADING_CHARACTERS]
        self._path = [(above, text) for above, text in self._path if above < level]
        if title:
            self._path.append((level, title))

    def text(self, text: str) -> None:
        """Adds one block of text, a line of its own."""
        self._lines.append(text)

    def sections(self) -> list[Section]:
        """All sections that have text."""
        self._close()
        return self._sections

    def _close(self) -> None:
        text = "\n".join(self._lines).strip()
        if text:
            self._sections.append(Section(tuple(title for _, title in self._path), text, self._markdown))
        self._lines = []


def split(sections: list[Section]) -> list[Chunk]:
    """The chunks of a document, in reading order."""
    plain, markdown = TextSplitter(CHUNK_CHARACTERS), MarkdownSplitter(CHUNK_CHARACTERS)
    chunks: list[Chunk] = []
    for section in sections:
        splitter = markdown if section.markdown else plain
        pieces = [piece for piece in splitter.chunks(section.text) if any(map(str.isalnum, piece))]
        chunks.extend(Chunk(section.headings, piece) for piece in pieces)
    return chunks
