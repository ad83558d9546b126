"""Error answers as RFC 9457 problem details, in one shape for public and internal routes."""

from collections.abc import Mapping, Sequence

import orjson
from starlette.responses import Response
from starlette.types import Scope

from shared.contracts.problems import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    PROBLEM_MEDIA_TYPE,
    PROBLEMS,
    UNAVAILABLE,
    Problem,
)
from shared.contracts.upgrade_http import FieldProblem

_TYPE_PREFIX = "urn:prompt-upgrader:problem:"


def unavailable_response() -> Response:
    """503, for a request that a store or another service could not serve; retry after 2 s."""
    return problem_response(UNAVAILABLE, headers={"Retry-After": "2"})


def problem_response(
    problem: Problem,
    detail: str = "",
    headers: Mapping[str, str] | None = None,
    errors: Sequence[FieldProblem] = (),
    *,
    extra: Mapping[str, object] | None = None,
    request_id: str | None = None,
) -> Response:
    """The answer for `problem`; without `detail` its title stands there.

    `errors` name the invalid fields, `extra` adds members to the body.
    """
    body: dict[str, object] = {
        **(extra or {}),
        "type": _TYPE_PREFIX + problem.code,
        "title": problem.title,
        "status": problem.status,
        "detail": detail or problem.title,
        "code": problem.code,
    }
    if request_id is not None:
        body["requestId"] = request_id
    if errors:
        body["errors"] = [error.to_document() for error in errors]
    return Response(orjson.dumps(body), problem.status, headers, PROBLEM_MEDIA_TYPE)


def problem_of_status(status: int) -> Problem:
    """The first problem of the registry with this HTTP status, or a general one of its class (4xx, 5xx)."""
    fallback = INTERNAL_ERROR if status >= 500 else INVALID_REQUEST
    return next((problem for problem in PROBLEMS.values() if problem.status == status), fallback)


def request_id_of(scope: Scope) -> str | None:
    """The id that a middleware gave the request as `request_id` in its state."""
    request_id: str | None = scope.get("state", {}).get("request_id")
    return request_id
