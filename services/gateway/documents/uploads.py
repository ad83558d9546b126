"""Reads an uploaded document from a request: a multipart `file`, or JSON with title and text. Limits how many are
read at once and how slowly.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath, PureWindowsPath
from weakref import WeakValueDictionary

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from services.gateway.http.bodies import media_type_of, parse, read_body, require_json, too_large
from services.gateway.http.pages import unavailable
from services.gateway.http.problems import ProblemError
from shared.contracts.documents import MAX_DOCUMENT_BYTES, MAX_TITLE_CHARACTERS, DocumentText
from shared.contracts.problems import INVALID_REQUEST, UNSUPPORTED_MEDIA_TYPE
from shared.contracts.upgrade_http import FieldProblem

PATIENCE_SECONDS = 30.0
LEAST_BYTES_PER_SECOND = 64 * 1024


class Pace:
    """How long the next bytes of an upload may take. Times are seconds of one clock.

    Nobody may be silent for more than 30 s, and each second beyond the first 30 has to bring 64 KiB on average: 20 MiB
    have almost six minutes.
    """

    def __init__(self, started: float) -> None:
        self._ends = started + PATIENCE_SECONDS

    def took(self, size: int) -> None:
        """So many bytes have come in."""
        self._ends += size / LEAST_BYTES_PER_SECOND

    def seconds_left(self, now: float) -> float:
        """For the next bytes; 0 or less when there is no time left."""
        return min(PATIENCE_SECONDS, self._ends - now)


class PacedBody:
    """Passes a request's messages on for as long as they keep up with the pace."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._clock = asyncio.get_running_loop().time
        self._pace = Pace(self._clock())

    async def receive(self) -> Message:
        """The next message. Raises TimeoutError."""
        async with asyncio.timeout(self._pace.seconds_left(self._clock())):
            message = await self._receive()
        self._pace.took(len(message.get("body", b"")))
        return message


def longest_seconds(size: int) -> float:
    """How long so many bytes may take in all."""
    return PATIENCE_SECONDS + size / LEAST_BYTES_PER_SECOND


_PLACES = 8
# By workspace and by person: somebody may be in many workspaces, and a workspace has many people. Four people who share
# none can still hold all places, each for as long as an upload may take.
_PLACES_OF_ONE = 2
_TURN_SECONDS = 10.0


class UploadPlaces:
    """`places` in all, and of them at most `of_one` under each name."""

    def __init__(
        self,
        *,
        places: int = _PLACES,
        of_one: int = _PLACES_OF_ONE,
        wait_seconds: float = _TURN_SECONDS,
    ) -> None:
        self._all = asyncio.Semaphore(places)
        self._of_one = of_one
        # Of those who have a place or wait for one.
        self._own: WeakValueDictionary[tuple[int, str], asyncio.Semaphore] = WeakValueDictionary()
        self._wait_seconds = wait_seconds

    @contextlib.asynccontextmanager
    async def place(self, *whose: str) -> AsyncIterator[None]:
        """A place for an upload that counts under each of the names, the one that fewest share first.

        A name is another one at another position. Raises ProblemError (unavailable) when none gets free in time.
        """
        # In this order, so that who waits for a place of their own keeps none from those they share a name with.
        limits = [*(self._of(key) for key in enumerate(whose)), self._all]
        async with contextlib.AsyncExitStack() as held:
            try:
                async with asyncio.timeout(self._wait_seconds):
                    for limit in limits:
                        await held.enter_async_context(limit)
            except TimeoutError:
                raise unavailable("Too many uploads at once.") from None
            yield

    def _of(self, key: tuple[int, str]) -> asyncio.Semaphore:
        own = self._own.get(key)
        if own is None:
            own = self._own[key] = asyncio.Semaphore(self._of_one)
        return own


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
