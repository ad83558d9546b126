"""Reads an uploaded document from a request: a multipart `file`, or JSON with title and text. Limits how many uploads
are read at once and how slowly each may arrive.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import PurePath, PureWindowsPath
from weakref import WeakValueDictionary

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from services.gateway.http.bodies import media_type_of, parse, read_body, require_json, too_large
from services.gateway.http.problems import ProblemError, invalid_field, unavailable
from shared.contracts.documents import MAX_DOCUMENT_BYTES, MAX_TITLE_CHARACTERS, DocumentText
from shared.contracts.problems import UNSUPPORTED_MEDIA_TYPE

PATIENCE_SECONDS = 30.0
LEAST_BYTES_PER_SECOND = 64 * 1024
_PLACES = 8
# Per person and per workspace, since a person may be in many workspaces and a workspace may have many persons. Four
# persons without a common workspace can still occupy all places, each for as long as an upload may take.
_PLACES_PER_OWNER = 2
_WAIT_SECONDS = 10.0
_FORM_OVERHEAD_BYTES = 64 * 1024
# JSON escapes some characters as six bytes; the limit of the text itself is checked after parsing.
_MAX_JSON_BYTES = MAX_DOCUMENT_BYTES + 4 * 1024 * 1024
_MAX_JSON_SECONDS = PATIENCE_SECONDS + _MAX_JSON_BYTES / LEAST_BYTES_PER_SECOND
_LONGEST_FILENAME = 255
_FIELDS = ("file", "title")


@dataclass(frozen=True)
class Upload:
    """A document as its client sent it."""

    title: str
    filename: str
    media_type: str
    content: bytes

    def digest(self) -> str:
        """Identifies title, filename, media type and content; equal for equal uploads."""
        parts = (self.title, self.filename, self.media_type, hashlib.sha256(self.content).hexdigest())
        return "\x1f".join(parts)


async def read_upload(request: Request) -> Upload:
    """The document of a request. Raises ProblemError for any other body, for one over 20 MiB and for a slow one."""
    request = Request(request.scope, _PacedBody(request.receive).receive)
    if media_type_of(request) == "multipart/form-data":
        return await _from_form(request)
    if media_type_of(request) != "application/json":
        raise ProblemError(
            UNSUPPORTED_MEDIA_TYPE, "The body must be multipart/form-data with a file, or application/json."
        )
    require_json(request)
    body = await read_body(request, _MAX_JSON_BYTES, within_seconds=_MAX_JSON_SECONDS)
    document = parse(DocumentText, body)
    content = document.text.encode()
    if len(content) > MAX_DOCUMENT_BYTES:
        raise too_large(MAX_DOCUMENT_BYTES)
    return Upload(title=document.title.strip(), filename="", media_type="text/plain", content=content)


async def _from_form(request: Request) -> Upload:
    limited = Request(request.scope, _CountedBody(request, MAX_DOCUMENT_BYTES + _FORM_OVERHEAD_BYTES).receive)
    try:
        async with limited.form(max_files=2, max_fields=8, max_part_size=_FORM_OVERHEAD_BYTES) as form:
            return await _from_fields(form)
    except (HTTPException, ClientDisconnect):
        raise invalid_field("body", "The multipart body is not valid.") from None
    except TimeoutError:
        # Closes the connection, since the rest of the body is not read.
        raise invalid_field("body", "The multipart body did not come in whole.", {"Connection": "close"}) from None


async def _from_fields(form: FormData) -> Upload:
    for name in form:
        if name not in _FIELDS:
            raise invalid_field(name[:200], "This field is not known.")
    files, titles = form.getlist("file"), form.getlist("title")
    if len(files) != 1 or not isinstance(files[0], UploadFile):
        raise invalid_field("file", "Send one file in this field.")
    if len(titles) > 1 or any(not isinstance(title, str) for title in titles):
        raise invalid_field("title", "Send one text in this field, or none.")
    file = files[0]
    content = await file.read(MAX_DOCUMENT_BYTES + 1)
    if len(content) > MAX_DOCUMENT_BYTES:
        raise too_large(MAX_DOCUMENT_BYTES)
    if not content:
        raise invalid_field("file", "The file is empty.")
    filename = _plain_name(file.filename or "")
    title = str(titles[0]).strip() if titles else ""
    if len(title) > MAX_TITLE_CHARACTERS:
        raise invalid_field("title", f"Must have at most {MAX_TITLE_CHARACTERS} characters.")
    media_type = (file.content_type or "application/octet-stream").partition(";")[0].strip().lower()
    return Upload(
        title=title or filename or "Untitled", filename=filename, media_type=media_type[:200], content=content
    )


class Pace:
    """Time limit for the next bytes of an upload. Times are seconds of one clock.

    A pause lasts at most 30 s, and after the first 30 s an upload must average 64 KiB/s: 20 MiB have almost six
    minutes.
    """

    def __init__(self, started: float) -> None:
        self._ends = started + PATIENCE_SECONDS

    def received(self, size: int) -> None:
        """Adds the time that `size` bytes earn."""
        self._ends += size / LEAST_BYTES_PER_SECOND

    def seconds_left(self, now: float) -> float:
        """The time for the next bytes; 0 or less when none is left."""
        return min(PATIENCE_SECONDS, self._ends - now)


class UploadPlaces:
    """Limits concurrent uploads to `places`, and to `per_owner` for each owner."""

    def __init__(
        self,
        *,
        places: int = _PLACES,
        per_owner: int = _PLACES_PER_OWNER,
        wait_seconds: float = _WAIT_SECONDS,
    ) -> None:
        self._all = asyncio.Semaphore(places)
        self._per_owner = per_owner
        # Weak, so that an owner's semaphore lives only while uploads hold it or wait for it.
        self._by_owner: WeakValueDictionary[tuple[int, str], asyncio.Semaphore] = WeakValueDictionary()
        self._wait_seconds = wait_seconds

    @contextlib.asynccontextmanager
    async def place(self, *owners: str) -> AsyncIterator[None]:
        """Holds a place for an upload that counts for each of the owners: first the person, then the workspace.

        Equal names at different positions are different owners. Raises ProblemError (unavailable) after 10 s without
        a free place.
        """
        # In this order, an upload that waits for a place of its person occupies none of its workspace.
        limits = [*(self._semaphore_of(key) for key in enumerate(owners)), self._all]
        async with contextlib.AsyncExitStack() as held:
            try:
                async with asyncio.timeout(self._wait_seconds):
                    for limit in limits:
                        await held.enter_async_context(limit)
            except TimeoutError:
                raise unavailable("Too many uploads at once.") from None
            yield

    def _semaphore_of(self, owner: tuple[int, str]) -> asyncio.Semaphore:
        semaphore = self._by_owner.get(owner)
        if semaphore is None:
            semaphore = self._by_owner[owner] = asyncio.Semaphore(self._per_owner)
        return semaphore


class _PacedBody:
    """Passes on a request's messages and raises TimeoutError when they arrive too slowly."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._clock = asyncio.get_running_loop().time
        self._pace = Pace(self._clock())

    async def receive(self) -> Message:
        async with asyncio.timeout(self._pace.seconds_left(self._clock())):
            message = await self._receive()
        self._pace.received(len(message.get("body", b"")))
        return message


class _CountedBody:
    """Passes on a request's messages and raises ProblemError (too_large) when the body exceeds the limit."""

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
