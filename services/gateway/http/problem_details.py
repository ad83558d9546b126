"""Errors as RFC 9457 problem details, the same shape for every route."""

from collections.abc import Iterable
from itertools import islice

import orjson
from pydantic_core import ErrorDetails
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.http.problems import ProblemError
from shared.contracts.problems import PROBLEM_MEDIA_TYPE
from shared.contracts.upgrade_http import FieldProblem

_TYPE_PREFIX = "urn:prompt-upgrader:problem:"
_MOST_ERRORS = 50
_LONGEST_NAME = 200
_KEY_OF_AN_OBJECT = "[key]"


def request_id_of(request: Request) -> str:
    """The id that the edge gave this request."""
    return str(request.scope.get("state", {}).get("request_id", ""))


def problem_response(request: Request, error: ProblemError) -> Response:
    """The answer that tells the client about `error`."""
    body: dict[str, object] = {
        **error.extra,
        "type": _TYPE_PREFIX + error.problem.code,
        "title": error.problem.title,
        "status": error.problem.status,
        "detail": error.detail,
        "code": error.problem.code,
        "requestId": request_id_of(request),
    }
    if error.errors:
        body["errors"] = [entry.to_document() for entry in error.errors]
    return Response(
        orjson.dumps(body), status_code=error.problem.status, media_type=PROBLEM_MEDIA_TYPE, headers=error.headers
    )


def field_path(location: Iterable[int | str]) -> str:
    """A place in a body as its client writes it: `conversationHistory[3].role`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return _printable(path[:_LONGEST_NAME]) or "body"


def field_problems(errors: Iterable[ErrorDetails]) -> list[FieldProblem]:
    """Validation errors by field. Nothing of the input but names of fields is repeated."""
    return [
        FieldProblem(field=field_path(_place(error)), detail=_detail(error)) for error in islice(errors, _MOST_ERRORS)
    ]


def _place(error: ErrorDetails) -> tuple[int | str, ...]:
    """Where the error is. pydantic marks that a name is wrong, and not its value, by one more step."""
    place = error["loc"]
    return place[:-1] if place[-1:] == (_KEY_OF_AN_OBJECT,) and error["type"] != "extra_forbidden" else place


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
    return "".join(character if character.isprintable() else "�" for character in text)
