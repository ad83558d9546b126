"""Extracts sections of text from the bytes of an upload. Runs in the preparation process only."""

import io
import re
import unicodedata
from collections.abc import Callable

import docx
import pypdf
from docx.table import Table
from docx.text.paragraph import Paragraph

from services.rag.indexing.file_types import DocumentType, FileRejected, FileType
from services.rag.indexing.html_parsing import html_sections
from services.rag.indexing.sections import Section, SectionCollector
from shared.contracts.problems import INVALID_REQUEST

MAX_PDF_PAGES = 5_000
MAX_TEXT_CHARACTERS = 25_000_000
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_ATX_HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
_SETEXT_UNDERLINE = re.compile(r"^ {0,3}(=+|-{2,})[ \t]*$")
_HEADING_STYLE = re.compile(r"heading\s*(\d)", re.IGNORECASE)
_WORD_BROKEN_BY_LINE_END = re.compile(r"(\w)-\n(?=[a-zà-öø-ÿ])")
_LINE_END_WITHIN_PARAGRAPH = re.compile(r"(?<![.!?:;\n])\n(?=\S)")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")
_BLANK_LINES = re.compile(r"\n\s*\n\s*\n+")


def open_check(data: bytes, file_type: FileType) -> None:
    """Checks that a PDF or DOCX can be opened. Raises FileRejected."""
    if file_type.type is DocumentType.PDF:
        _open_pdf(data)
    elif file_type.type is DocumentType.DOCX:
        _open_docx(data)


def parse(data: bytes, file_type: FileType) -> list[Section]:
    """The text of a document, in reading order. Raises FileRejected when there is none, or too much."""
    parsers: dict[DocumentType, Callable[[], list[Section]]] = {
        DocumentType.TEXT: lambda: [Section((), data.decode(file_type.encoding, errors="replace"))],
        DocumentType.MARKDOWN: lambda: markdown_sections(data.decode(file_type.encoding, errors="replace")),
        DocumentType.HTML: lambda: html_sections(data.decode(file_type.encoding, errors="replace")),
        DocumentType.PDF: lambda: _pdf_sections(data),
        DocumentType.DOCX: lambda: _docx_sections(data),
    }
    sections = [section for section in map(_cleaned, parsers[file_type.type]()) if section.text]
    if not sections:
        hint = " A scanned PDF needs text recognition first." if file_type.type is DocumentType.PDF else ""
        raise FileRejected(INVALID_REQUEST, f"The document holds no text.{hint}")
    if sum(len(section.text) for section in sections) > MAX_TEXT_CHARACTERS:
        raise FileRejected(INVALID_REQUEST, "The document holds more text than can be indexed.")
    return sections


def _cleaned(section: Section) -> Section:
    text = unicodedata.normalize("NFC", section.text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _BLANK_LINES.sub("\n\n", _CONTROLS.sub(" ", text)).strip("\ufeff \n\t")
    return Section(tuple(_CONTROLS.sub(" ", heading) for heading in section.headings), text, section.markdown)


def markdown_sections(text: str) -> list[Section]:
    """Sections of a Markdown text; a `#` inside a fenced code block is no heading."""
    collector = SectionCollector(markdown=True)
    fence: str | None = None
    lines = text.splitlines()
    skip = False
    for number, line in enumerate(lines):
        if skip:
            skip = False
            continue
        mark = _FENCE.match(line)
        if fence is not None:
            if mark and mark.group(1).startswith(fence) and not line.strip().strip(fence[0]):
                fence = None
            collector.text(line)
            continue
        heading = _ATX_HEADING.match(line)
        underline = _SETEXT_UNDERLINE.match(lines[number + 1]) if number + 1 < len(lines) else None
        if mark:
            fence = mark.group(1)
            collector.text(line)
        elif heading:
            collector.heading(len(heading.group(1)), heading.group(2))
        elif underline and _can_be_setext(line, lines[number - 1] if number else ""):
            collector.heading(1 if underline.group(1).startswith("=") else 2, line)
            skip = True
        else:
            collector.text(line)
    return collector.sections()


def _can_be_setext(line: str, before: str) -> bool:
    return bool(line.strip()) and not before.strip() and not line.lstrip().startswith(("-", "*", ">", "|", "+"))


def _open_pdf(data: bytes) -> pypdf.PdfReader:
    try:
        reader = pypdf.PdfReader(io.BytesIO(data), strict=False)
        if reader.is_encrypted and not reader.decrypt(""):
            raise FileRejected(INVALID_REQUEST, "The PDF is protected by a password. Upload it without one.")
        pages = len(reader.pages)
    except FileRejected:
        raise
    except Exception as error:  # hostile input can make the parser raise anything
        raise FileRejected(INVALID_REQUEST, "The file cannot be read as a PDF; it is damaged or not one.") from error
    if pages == 0:
        raise FileRejected(INVALID_REQUEST, "The PDF has no pages.")
    if pages > MAX_PDF_PAGES:
        raise FileRejected(INVALID_REQUEST, f"The PDF has more than {MAX_PDF_PAGES} pages.")
    return reader


def _pdf_sections(data: bytes) -> list[Section]:
    reader = _open_pdf(data)
    pages: list[str] = []
    for page in reader.pages:
        try:
            pages.append(page.extract_text())
        except Exception:  # noqa: S112 -- the other pages may still be readable
            continue
    text = "\n\n".join(page.strip() for page in pages if page.strip())
    text = _WORD_BROKEN_BY_LINE_END.sub(r"\1", text)
    return [Section((), _LINE_END_WITHIN_PARAGRAPH.sub(" ", text))]


def _open_docx(data: bytes) -> "docx.document.Document":
    try:
        return docx.Document(io.BytesIO(data))
    except Exception as error:  # hostile input can make the parser raise anything
        raise FileRejected(INVALID_REQUEST, "The file cannot be read as a DOCX; it is damaged or not one.") from error


def _docx_sections(data: bytes) -> list[Section]:
    document = _open_docx(data)
    collector = SectionCollector()
    for block in document.iter_inner_content():
        if isinstance(block, Table):
            for row in block.rows:
                collector.text(" | ".join(dict.fromkeys(cell.text.strip() for cell in row.cells)))
            collector.text("")
        elif isinstance(block, Paragraph) and block.text.strip():
            _add_paragraph(collector, block)
    return collector.sections()


def _add_paragraph(collector: SectionCollector, paragraph: Paragraph) -> None:
    style = paragraph.style
    names = f"{style.name or ''} {style.style_id or ''}" if style is not None else ""
    heading = _HEADING_STYLE.search(names)
    if heading:
        collector.heading(int(heading.group(1)), paragraph.text)
    elif names.lower().startswith("title"):
        collector.heading(0, paragraph.text)
    else:
        collector.text(("- " if "list" in names.lower() else "") + paragraph.text + "\n")
