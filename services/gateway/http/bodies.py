"""Reads JSON bodies and the headers `Prefer` and `Idempotency-Key` within limits, and writes JSON answers.

What is invalid becomes a ProblemError that names the field or header.
"""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from services.gateway.http.problem_details import field_problems
from services.gateway.http.problems import FIELDS_NOT_VALID, ProblemError
from shared.contracts.problems import INVALID_HEADER, INVALID_REQUEST, MALFORMED_JSON, TOO_LARGE, UNSUPPORTED_MEDIA_TYPE
from shared.contracts.upgrade_http import FieldProblem

ModelT = TypeVar("ModelT", bound=BaseModel)

DEFAULT_WAIT_SECONDS = 30
LONGEST_WAIT_SECONDS = 60
_SMALL_BODY_BYTES = 64 * 1024
_DISCARDED_BYTES = 4 * 1024 * 1024
_MOST_LISTED = 1_000
_LONGEST_KEY = 255
_CLOSE = {"Connection": "close"}
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_REPLACEMENT = "\ufffd"


async def read_json(model: type[ModelT], request: Request, limit_bytes: int = _SMALL_BODY_BYTES) -> ModelT:
    """The JSON body as `model`, by default of at most 64 KiB. Raises ProblemError."""
    require_json(request)
    return parse(model, await read_body(request, limit_bytes))


def media_type_of(request: Request) -> str:
    """The media type of the body in lower case, without parameters; empty when the client names none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def require_json(request: Request) -> None:
    """Raises ProblemError (unsupported_media_type) unless the headers announce uncompressed JSON in UTF-8."""
    content_type = request.headers.get("content-type", "")
    charset = re.search(r"charset\s*=\s*\"?([\w-]+)", content_type, re.IGNORECASE)
    if media_type_of(request) != "application/json" or (charset and charset[1].lower() not in ("utf-8", "utf8")):
        raise ProblemError(UNSUPPORTED_MEDIA_TYPE, "The body must be application/json in UTF-8.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ProblemError(UNSUPPORTED_MEDIA_TYPE, "The body must not be compressed.")


def too_large(limit_bytes: int) -> ProblemError:
    """The problem of a body over `limit_bytes`. Closes the connection, since the rest of the body is not read."""
    return ProblemError(TOO_LARGE, f"The body must not be larger than {limit_bytes} bytes.", headers=_CLOSE)


async def read_body(request: Request, limit_bytes: int, within_seconds: float = 30.0) -> bytes:
    """The body. Raises ProblemError: too_large, or malformed_json when it is cut off or not complete in time.

    Up to 4 MiB beyond the limit are read and discarded, so that a client that is still sending receives the answer.
    """
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(within_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit_bytes + _DISCARDED_BYTES:
                    break
                if size <= limit_bytes:
                    chunks.append(chunk)
    except (ClientDisconnect, TimeoutError):
        raise ProblemError(MALFORMED_JSON, "The body did not come in whole.", headers=_CLOSE) from None
    if size > limit_bytes:
        raise too_large(limit_bytes)
    return b"".join(chunks)


def parse(model: type[ModelT], body: bytes) -> ModelT:
    """The body as `model`. Raises ProblemError (malformed_json, or invalid_request with the fields)."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        problem = _invalid(error)
    if problem is not None:
        raise problem
    return _parse_with_lone_surrogates(model, body)


def _parse_with_lone_surrogates(model: type[ModelT], body: bytes) -> ModelT:
    # JSON allows escapes of lone surrogates; clients that cut text by UTF-16 units send them, pydantic rejects them.
    malformed = ProblemError(MALFORMED_JSON, _why_malformed(body))
    if b"\\ud" not in body.lower():
        raise malformed
    try:
        text = json.dumps(json.loads(body), ensure_ascii=False)
        return model.model_validate_json(_LONE_SURROGATE.sub(_REPLACEMENT, text))
    except ValidationError as error:
        raise _invalid(error) or malformed from None
    except (ValueError, RecursionError):
        raise malformed from None


def _why_malformed(body: bytes) -> str:
    """Why a body is not JSON, with the position. Repeats nothing of the body."""
    if not body.strip():
        return "The body is empty."
    try:
        json.loads(body.decode())
    except UnicodeDecodeError:
        return "The body is not UTF-8."
    except json.JSONDecodeError as error:
        return f"The body is not valid JSON: line {error.lineno}, column {error.colno}."
    except (ValueError, RecursionError):
        pass
    return "The body is not valid JSON."


def _invalid(error: ValidationError) -> ProblemError | None:
    """The problem that names the invalid fields; None when the body is not JSON."""
    if error.error_count() > _MOST_LISTED:
        # Listing them all would take seconds for a body made for that purpose.
        too_many = FieldProblem(field="body", detail=f"More than {_MOST_LISTED} fields are not valid.")
        return ProblemError(INVALID_REQUEST, FIELDS_NOT_VALID, errors=[too_many])
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    if errors[0]["type"] == "json_invalid":
        return None
    return ProblemError(INVALID_REQUEST, FIELDS_NOT_VALID, errors=field_problems(errors))


@dataclass(frozen=True)
class Preference:
    """How long to wait for the result, in seconds, and the value of `Preference-Applied`."""

    wait_seconds: int
    applied: str


def preference_of(headers: Sequence[str]) -> Preference:
    """Reads `Prefer` (RFC 7240): the first value of a preference counts, unknown preferences are ignored."""
    preferences: dict[str, str] = {}
    for token in ",".join(headers).split(","):
        name, _, value = token.partition(";")[0].partition("=")
        preferences.setdefault(name.strip().lower(), value.strip().strip('"'))
    wait = preferences.get("wait", "")
    seconds = min(int(wait), LONGEST_WAIT_SECONDS) if wait.isascii() and wait.isdigit() and len(wait) < 10 else None
    if "respond-async" in preferences:
        return Preference(seconds, f"respond-async, wait={seconds}") if seconds else Preference(0, "respond-async")
    seconds = DEFAULT_WAIT_SECONDS if seconds is None else seconds
    return Preference(seconds, f"wait={seconds}")


def idempotency_key_of(headers: Sequence[str]) -> str | None:
    """The request's `Idempotency-Key`, or None. Raises ProblemError (invalid_header) for an invalid or second key."""
    if not headers:
        return None
    key = headers[0]
    printable = key.isascii() and key.isprintable() and bool(key.strip())
    if len(set(headers)) > 1 or not printable or len(key) > _LONGEST_KEY:
        raise ProblemError(
            INVALID_HEADER, f"Idempotency-Key must be one text of 1 to {_LONGEST_KEY} printable characters."
        )
    return key


def json_response(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI for a route that reads its body itself: a JSON body of a model that the document defines."""
    schema = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
    return {"requestBody": {"required": True, "content": {"application/json": schema}}}
