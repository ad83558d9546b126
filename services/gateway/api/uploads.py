"""Takes an uploaded document out of a request: a multipart `file`, or JSON with title and text."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath, PureWindowsPath

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from services.gateway.api.bodies import media_type_of, parse, read_body, require_json, too_large
from services.gateway.api.upload_pace import PacedBody, longest_seconds
from services.gateway.problems import ProblemError
from shared.contracts.documents_http import MAX_DOCUMENT_BYTES, MAX_TITLE_CHARACTERS, DocumentText
from shared.contracts.problems import INVALID_REQUEST, UNSUPPORTED_MEDIA_TYPE
from shared.contracts.upgrade_http import FieldProblem

_FORM_OVERHEAD_BYTES = 64 * 1024
# JSON writes some characters as six bytes; the text itself is measured once it is read.
_MAX_JSON_BYTES = MAX_DOCUMENT_BYTES + 4 * 1024 * 1024
_LONGEST_FILENAME = 255
_FIELDS = ("file", "title")


@dataclass(frozen=True)
class Upload:
    """A document as it came in."""

    title: str
    filename: str
    media_type: str
    content: bytes

    def digest(self) -> str:
        """The same for the same upload."""
        parts = (self.title, self.filename, self.media_type, hashlib.sha256(self.content).hexdigest())
        return "\x1f".join(parts)


async def read_upload(request: Request) -> Upload:
    """The document of a request. Raises ProblemError for every other body, one over 20 MiB and one that is too slow."""
    request = Request(request.scope, PacedBody(request.receive).receive)
    if media_type_of(request) == "multipart/form-data":
        return await _from_form(request)
    if media_type_of(request) != "application/json":
        raise ProblemError(
            UNSUPPORTED_MEDIA_TYPE, "The body must be multipart/form-data with a file, or application/json."
        )
    require_json(request)
    body = await read_body(request, _MAX_JSON_BYTES, within_seconds=longest_seconds(_MAX_JSON_BYTES))
    document = parse(DocumentText, body)
    content = document.text.encode()
    if len(content) > MAX_DOCUMENT_BYTES:
        raise too_large(MAX_DOCUMENT_BYTES)
    return Upload(title=document.title.strip(), filename="", media_type="text/plain", content=content)


async def _from_form(request: Request) -> Upload:
    limited = Request(request.scope, _Counted(request, MAX_DOCUMENT_BYTES + _FORM_OVERHEAD_BYTES).receive)
    try:
        async with limited.form(max_files=2, max_fields=8, max_part_size=_FORM_OVERHEAD_BYTES) as form:
            return await _from_fields(form)
    except (HTTPException, ClientDisconnect):
        raise _invalid("body", "The multipart body is not valid.") from None
    except TimeoutError:
        # The connection ends: the rest of the body is not read.
        raise _invalid("body", "The multipart body did not come in whole.", {"Connection": "close"}) from None


async def _from_fields(form: FormData) -> Upload:
    for name in form:
        if name not in _FIELDS:
            raise _invalid(name[:200], "This field is not known.")
    files, titles = form.getlist("file"), form.getlist("title")
    if len(files) != 1 or not isinstance(files[0], UploadFile):
        raise _invalid("file", "Send one file in this field.")
    if len(titles) > 1 or any(not isinstance(title, str) for title in titles):
        raise _invalid("title", "Send one text in this field, or none.")
    file = files[0]
    content = await file.read(MAX_DOCUMENT_BYTES + 1)
    if len(content) > MAX_DOCUMENT_BYTES:
        raise too_large(MAX_DOCUMENT_BYTES)
    if not content:
        raise _invalid("file", "The file is empty.")
    filename = _plain_name(file.filename or "")
    title = str(titles[0]).strip() if titles else ""
    if len(title) > MAX_TITLE_CHARACTERS:
        raise _invalid("title", f"Must have at most {MAX_TITLE_CHARACTERS} characters.")
    media_type = (file.content_type or "application/octet-stream").partition(";")[0].strip().lower()
    return Upload(
        title=title or filename or "Untitled", filename=filename, media_type=media_type[:200], content=content
    )


class _Counted:
    """Passes a request's messages on and counts its body: the limit holds whatever the client announced."""

    def __init__(self, request: Request, limit_bytes: int) -> None:
        self._request = request
        self._limit_bytes = limit_bytes
        self._size = 0

    async def receive(self) -> Message:
        message = await self._request.receive()
        self._size += len(message.get("body", b""))
        if self._size > self._limit_bytes:
            raise too_large(MAX_DOCUMENT_BYTES)
        return message


def _plain_name(filename: str) -> str:
    name = PurePath(PureWindowsPath(filename).name).name
    return "".join(character for character in name if character.isprintable())[-_LONGEST_FILENAME:]


def _invalid(field: str, detail: str, headers: Mapping[str, str] | None = None) -> ProblemError:
    problem = FieldProblem(field=field, detail=detail)
    return ProblemError(INVALID_REQUEST, "One or more fields are not valid.", errors=[problem], headers=headers)
