"""Reads request bodies within bounds and turns them into models, or into problems that name what is wrong."""

import json
import re
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from services.gateway.problem_details import ProblemError, field_problems
from shared.contracts.problems import INVALID_REQUEST, MALFORMED_JSON, TOO_LARGE, UNSUPPORTED_MEDIA_TYPE

ModelT = TypeVar("ModelT", bound=BaseModel)

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_REPLACEMENT = "\ufffd"
_DISCARDED_BYTES = 4 * 1024 * 1024


def media_type_of(request: Request) -> str:
    """The media type of the body in lower case, without parameters; empty when the client names none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def require_json(request: Request) -> None:
    """Raises ProblemError (unsupported_media_type) unless the body says it is JSON in UTF-8."""
    content_type = request.headers.get("content-type", "")
    charset = re.search(r"charset\s*=\s*\"?([\w-]+)", content_type, re.IGNORECASE)
    if media_type_of(request) != "application/json" or (charset and charset[1].lower() not in ("utf-8", "utf8")):
        raise ProblemError(UNSUPPORTED_MEDIA_TYPE, "The body must be application/json in UTF-8.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ProblemError(UNSUPPORTED_MEDIA_TYPE, "The body must not be compressed.")


def too_large(limit_bytes: int) -> ProblemError:
    """The problem of a body over `limit_bytes`. The connection ends: the rest of the body is not read."""
    return ProblemError(
        TOO_LARGE, f"The body must not be larger than {limit_bytes} bytes.", headers={"Connection": "close"}
    )


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The body, counted while it is read. Raises ProblemError (too_large) when it is over the limit.

    A little more than the limit is read and thrown away, so that a client that is still sending gets to see the answer.
    """
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit_bytes + _DISCARDED_BYTES:
                break
            if size <= limit_bytes:
                chunks.append(chunk)
    except ClientDisconnect:
        raise ProblemError(MALFORMED_JSON, "The body ended too early.") from None
    if size > limit_bytes:
        raise too_large(limit_bytes)
    return b"".join(chunks)


def parse(model: type[ModelT], body: bytes) -> ModelT:
    """The body as `model`. Raises ProblemError (malformed_json, or invalid_request with the fields)."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        if error.errors(include_url=False, include_context=False)[0]["type"] != "json_invalid":
            raise _invalid(error) from None
    return _parse_with_lone_surrogates(model, body)


def _parse_with_lone_surrogates(model: type[ModelT], body: bytes) -> ModelT:
    # JSON allows an escape that is half a character, as a client that cuts text by UTF-16 units sends it.
    malformed = ProblemError(MALFORMED_JSON, "The body is not valid JSON.")
    if b"\\ud" not in body.lower():
        raise malformed
    try:
        text = json.dumps(json.loads(body), ensure_ascii=False)
        return model.model_validate_json(_LONE_SURROGATE.sub(_REPLACEMENT, text))
    except ValidationError as error:
        raise _invalid(error) from None
    except (ValueError, RecursionError):
        raise malformed from None


def _invalid(error: ValidationError) -> ProblemError:
    fields = field_problems(error.errors(include_url=False, include_context=False, include_input=False))
    return ProblemError(INVALID_REQUEST, "One or more fields are not valid.", errors=fields)
