"""Turns ProblemError and pydantic's validation errors into problem details (RFC 9457)."""

from collections.abc import Iterable
from itertools import islice

from pydantic_core import ErrorDetails
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.http.problems import ProblemError
from shared.contracts.upgrade_http import FieldProblem
from shared.service.problems import problem_response, request_id_of

_MOST_ERRORS = 50
_LONGEST_NAME = 200
_KEY_OF_AN_OBJECT = "[key]"


def error_response(request: Request, error: ProblemError) -> Response:
    """The answer to a request that ended with `error`."""
    return problem_response(
        error.problem,
        error.detail,
        error.headers,
        error.errors,
        extra=error.extra,
        request_id=request_id_of(request.scope),
    )


def field_path(location: Iterable[int | str]) -> str:
    """A location of pydantic as a path in the client's JSON: `conversationHistory[3].role`; `body` for the root."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return _printable(path[:_LONGEST_NAME]) or "body"


def field_problems(errors: Iterable[ErrorDetails]) -> list[FieldProblem]:
    """At most 50 validation errors by field. They repeat field names of the input, never its values."""
    return [
        FieldProblem(field=field_path(_location(error)), detail=_detail(error))
        for error in islice(errors, _MOST_ERRORS)
    ]


def _location(error: ErrorDetails) -> tuple[int | str, ...]:
    """The location without the step that pydantic appends when the name of a member is invalid, not its value."""
    location = error["loc"]
    return location[:-1] if location[-1:] == (_KEY_OF_AN_OBJECT,) and error["type"] != "extra_forbidden" else location


def _detail(error: ErrorDetails) -> str:
    match error["type"]:
        case "extra_forbidden":
            return "This field is not known."
        case "missing":
            return "This field is required."
        case "model_type" | "model_attributes_type" | "dict_type":
            return "Input should be an object."
    return error["msg"].removeprefix("Value error, ").rstrip(".") + "."


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
