"""Prepares a document for embedding: parses it, removes injected instructions, redacts it and splits it into chunks."""

from services.rag.indexing.file_types import FileRejected, FileType
from services.rag.indexing.parsing import parse
from services.rag.indexing.prepared_document import PreparedChunk, PreparedDocument
from services.rag.indexing.sections import Section, split
from shared.contracts.problems import INVALID_REQUEST
from shared.privacy.injection import remove
from shared.privacy.placeholders import PlaceholderMap, placeholders_in
from shared.privacy.redaction import redact

MAX_CHUNKS = 50_000


def prepare(data: bytes, file_type: FileType, title: str) -> PreparedDocument:
    """Parses, cleans, redacts and splits a document, in this order. Raises FileRejected for an unusable one.

    Whole sections are redacted before they are split, since redaction would miss a personal value that spans two
    chunks.
    """
    placeholders = PlaceholderMap()
    safe_title = redact(_without_injections(title)[0] or "Untitled", placeholders)
    prepared: list[PreparedChunk] = []
    removed = 0
    values = placeholders.values()
    for section in parse(data, file_type):
        cleaned, injections = _cleaned(section, placeholders)
        removed += injections
        if len(placeholders) != len(values):
            values = placeholders.values()
        for chunk in split([cleaned]):
            used = dict.fromkeys(placeholders_in([chunk.context, chunk.text]))
            chunk_values = {placeholder: values[placeholder] for placeholder in used if placeholder in values}
            prepared.append(PreparedChunk(chunk.context, chunk.text, chunk_values, injections))
        if len(prepared) > MAX_CHUNKS:
            raise FileRejected(INVALID_REQUEST, f"The document has more than {MAX_CHUNKS:,} passages; split it.")
    if not prepared:
        raise FileRejected(INVALID_REQUEST, "The document holds no text that can be used.")
    title_values = {found: values[found] for found in placeholders_in(safe_title) if found in values}
    return PreparedDocument(safe_title, title_values, prepared, removed)


def _cleaned(section: Section, placeholders: PlaceholderMap) -> tuple[Section, int]:
    text, removed = _without_injections(section.text)
    headings = []
    for heading in section.headings:
        cleaned, found = _without_injections(heading)
        removed += found
        if cleaned:
            headings.append(redact(cleaned, placeholders))
    return Section(tuple(headings), redact(text, placeholders), section.markdown), removed


def _without_injections(text: str) -> tuple[str, int]:
    cleaned, removed = remove(text)
    return cleaned.strip(), len(removed)
