"""Problems of other services that concern the client's request, passed on under their code."""

from collections.abc import Collection, Mapping
from typing import Any

import httpx
import orjson
from pydantic import ValidationError

from services.gateway.http.problems import ProblemError
from shared.contracts.problems import NOT_FOUND, PROBLEMS, QUOTA_EXCEEDED
from shared.contracts.upgrade_http import FieldProblem

_LONGEST_DETAIL = 500
_QUOTA_FIELDS = ("meter", "limit", "used", "held", "resetsAt")


def passed_on(answer: httpx.Response, codes: Collection[str], *, not_found: str) -> ProblemError | None:
    """The problem in a service's answer when its code is one of `codes`, else None.

    `not_found` is the detail of a 404.
    """
    try:
        body = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(body, Mapping) or body.get("code") not in codes:
        return None
    problem = PROBLEMS[body["code"]]
    if problem is NOT_FOUND:
        return ProblemError(NOT_FOUND, not_found)
    extra = {name: body[name] for name in _QUOTA_FIELDS if name in body} if problem is QUOTA_EXCEEDED else {}
    return ProblemError(
        problem,
        str(body.get("detail") or problem.title)[:_LONGEST_DETAIL],
        errors=_field_problems(body),
        extra=extra,
        headers={"Retry-After": answer.headers.get("Retry-After", "5")} if problem is QUOTA_EXCEEDED else None,
    )


def _field_problems(body: Mapping[str, Any]) -> list[FieldProblem]:
    try:
        return [FieldProblem.model_validate(entry) for entry in body.get("errors") or []]
    except (ValidationError, TypeError):
        return []
