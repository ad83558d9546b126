"""Detects the type of an upload from its content, and checks it against the media type and name the caller sent."""

import io
import re
import zipfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from shared.contracts.problems import INVALID_REQUEST, TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, Problem

MAX_UPLOAD_BYTES = 20 * 1024 * 1024
MAX_UNPACKED_BYTES = 100 * 1024 * 1024
MAX_ARCHIVE_ENTRIES = 5_000

_PDF_MAGIC = b"%PDF-"
_PDF_MAGIC_WITHIN = 1024
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_OLE_MAGIC = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_TEXT_CONTROLS = frozenset(b"\t\n\r\f\x1b")
_MAX_CONTROL_SHARE = 0.01


class DocumentType(StrEnum):
    TEXT = "text"
    MARKDOWN = "markdown"
    HTML = "html"
    PDF = "pdf"
    DOCX = "docx"


class FileRejected(Exception):
    """An upload that cannot become a document. `detail` is meant for the person who uploaded it."""

    def __init__(self, problem: Problem, detail: str) -> None:
        super().__init__(detail)
        self.problem = problem
        self.detail = detail


@dataclass(frozen=True)
class FileType:
    """The type of a file and, for text, the name of its encoding."""

    type: DocumentType
    encoding: str = "utf-8"


_MEDIA_TYPES = {
    "text/plain": DocumentType.TEXT,
    "text/markdown": DocumentType.MARKDOWN,
    "text/x-markdown": DocumentType.MARKDOWN,
    "text/html": DocumentType.HTML,
    "application/xhtml+xml": DocumentType.HTML,
    "application/pdf": DocumentType.PDF,
    "application/x-pdf": DocumentType.PDF,
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": DocumentType.DOCX,
}
_EXTENSIONS = {
    ".txt": DocumentType.TEXT,
    ".text": DocumentType.TEXT,
    ".md": DocumentType.MARKDOWN,
    ".markdown": DocumentType.MARKDOWN,
    ".html": DocumentType.HTML,
    ".htm": DocumentType.HTML,
    ".xhtml": DocumentType.HTML,
    ".pdf": DocumentType.PDF,
    ".docx": DocumentType.DOCX,
}
# Clients send these when they do not know the type.
_UNSPECIFIC_MEDIA_TYPES = {
    "",
    "application/octet-stream",
    "binary/octet-stream",
    "application/zip",
    "application/x-zip-compressed",
}
_TEXTUAL = {DocumentType.TEXT, DocumentType.MARKDOWN, DocumentType.HTML}
_NAMES = {
    DocumentType.TEXT: "text",
    DocumentType.MARKDOWN: "Markdown",
    DocumentType.HTML: "HTML",
    DocumentType.PDF: "PDF",
    DocumentType.DOCX: "DOCX",
}
SUPPORTED = "Text, Markdown, HTML, PDF and DOCX are supported."


def file_type(data: bytes, *, filename: str = "", media_type: str = "") -> FileType:
    """The type of an upload. Raises FileRejected: too large, empty, unsupported, or not of the type it was sent as."""
    if len(data) > MAX_UPLOAD_BYTES:
        raise FileRejected(TOO_LARGE, f"A document may have {MAX_UPLOAD_BYTES // (1024 * 1024)} MiB at most.")
    if not data.strip():
        raise FileRejected(INVALID_REQUEST, "The file is empty.")
    claims = _claims(filename, media_type)
    if _PDF_MAGIC in data[:_PDF_MAGIC_WITHIN]:
        return _agreed(DocumentType.PDF, claims)
    if data.startswith(_ZIP_MAGIC):
        _check_archive(data)
        return _agreed(DocumentType.DOCX, claims)
    if data.startswith(_OLE_MAGIC):
        if DocumentType.DOCX in claims:
            raise FileRejected(INVALID_REQUEST, "The file is protected by a password, or is not a DOCX file.")
        raise FileRejected(UNSUPPORTED_MEDIA_TYPE, f"Old Office files are not supported; save it as DOCX. {SUPPORTED}")
    return _text_type(data, claims, media_type)


def _claims(filename: str, media_type: str) -> list[DocumentType]:
    """The types that the media type and the file name claim. Raises FileRejected for an unsupported media type."""
    claims = []
    essence = media_type.partition(";")[0].strip().lower()
    if essence not in _UNSPECIFIC_MEDIA_TYPES:
        if essence not in _MEDIA_TYPES:
            raise FileRejected(UNSUPPORTED_MEDIA_TYPE, f"This media type is not supported. {SUPPORTED}")
        claims.append(_MEDIA_TYPES[essence])
    extension = PurePosixPath(filename.replace("\\", "/")).suffix.lower()
    if extension in _EXTENSIONS:
        claims.append(_EXTENSIONS[extension])
    return claims


def _agreed(found: DocumentType, claims: list[DocumentType]) -> FileType:
    for claim in claims:
        if claim is not found:
            raise FileRejected(
                INVALID_REQUEST, f"The file says it is {_NAMES[claim]}, but its content is {_NAMES[found]}."
            )
    return FileType(found)


def _check_archive(data: bytes) -> None:
    """Raises FileRejected unless the archive is a DOCX of allowed size. Reads only its directory, unpacks nothing."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError) as error:
        raise FileRejected(INVALID_REQUEST, "The file is a damaged archive, not a readable DOCX file.") from error
    names = {entry.filename for entry in entries}
    if "[Content_Types].xml" not in names or not any(name.startswith("word/") for name in names):
        raise FileRejected(UNSUPPORTED_MEDIA_TYPE, f"Archives are not supported. {SUPPORTED}")
    if len(entries) > MAX_ARCHIVE_ENTRIES or sum(entry.file_size for entry in entries) > MAX_UNPACKED_BYTES:
        raise FileRejected(TOO_LARGE, "The DOCX file is too large once it is unpacked.")


def _text_type(data: bytes, claims: list[DocumentType], media_type: str) -> FileType:
    encoding = _encoding(data, media_type)
    for claim in claims:
        if claim not in _TEXTUAL:
            raise FileRejected(INVALID_REQUEST, f"The file says it is {_NAMES[claim]}, but it is not.")
    if encoding is None:
        raise FileRejected(UNSUPPORTED_MEDIA_TYPE, f"The file is neither text nor a supported format. {SUPPORTED}")
    text = data.decode(encoding, errors="replace")
    if not text.strip("\ufeff \t\r\n\f\v\u00a0\u200b"):
        raise FileRejected(INVALID_REQUEST, "The file holds no text.")
    # The more specific claim wins, since a Markdown file is often sent as text/plain.
    specific = [claim for claim in claims if claim is not DocumentType.TEXT]
    if specific:
        return FileType(specific[0], encoding)
    if not claims and re.match(r"\s*(<!doctype html|<html[\s>])", text[:512], re.IGNORECASE):
        return FileType(DocumentType.HTML, encoding)
    return FileType(DocumentType.TEXT, encoding)


def _encoding(data: bytes, media_type: str) -> str | None:
    """The encoding in which `data` is text, or None when it is not text."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16" if _decodes(data, "utf-16") else None
    if b"\x00" in data or _control_share(data) > _MAX_CONTROL_SHARE:
        return None
    if _decodes(data, "utf-8"):
        return "utf-8-sig"
    declared = re.search(r"charset=[\"']?([\w.:-]+)", media_type + " " + data[:1024].decode("latin-1"), re.IGNORECASE)
    if declared and _decodes(data, declared.group(1)):
        return declared.group(1)
    return "cp1252" if _looks_like_western_text(data) else None


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return False
    return True


def _control_share(data: bytes) -> float:
    sample = data[:65_536]
    return sum(1 for byte in sample if byte < 0x20 and byte not in _TEXT_CONTROLS) / len(sample)


def _looks_like_western_text(data: bytes) -> bool:
    """Single-byte text has mostly ASCII letters between its accented ones; random bytes do not."""
    sample = data[:65_536]
    high = sum(1 for byte in sample if byte >= 0x80)
    return high / len(sample) < 0.3 and _decodes(data, "cp1252")
