"""Exceptions with which use cases and routes end a request. Free of web frameworks, so that use cases can import it."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

from shared.contracts.contract import is_uuid
from shared.contracts.problems import INVALID_REQUEST, NOT_FOUND, UNAVAILABLE, Problem
from shared.contracts.upgrade_http import FieldProblem
from shared.storage.documents import StorageUnavailable

FIELDS_NOT_VALID = "One or more fields are not valid."
IDEMPOTENCY_WINDOW = timedelta(hours=24)


class ProblemError(Exception):
    """Ends a request with a problem. `extra` adds members to the body, `headers` to the answer."""

    def __init__(
        self,
        problem: Problem,
        detail: str,
        *,
        errors: Sequence[FieldProblem] = (),
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        self.problem = problem
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})


class MadeBefore(ProblemError):
    """An earlier request with this idempotency key created the resource, which has been deleted since."""


class IdempotencyKeyReused(Exception):
    """The idempotency key was used with a different body before."""


def unavailable(detail: str = "Try again.") -> ProblemError:
    """The problem of a request that a store or service outside of the gateway could not serve; retry after 2 s."""
    return ProblemError(UNAVAILABLE, detail, headers={"Retry-After": "2"})


@contextlib.contextmanager
def storage_errors_as_problems() -> Iterator[None]:
    """Answers 503 when the store is out."""
    try:
        yield
    except StorageUnavailable:
        raise unavailable() from None


def invalid_field(field: str, detail: str, headers: Mapping[str, str] | None = None) -> ProblemError:
    """The problem of a request with one field that is not valid."""
    errors = [FieldProblem(field=field, detail=detail)]
    return ProblemError(INVALID_REQUEST, FIELDS_NOT_VALID, errors=errors, headers=headers)


def canonical_id(text: str, what: str) -> str:
    """The id in lower case. Raises ProblemError (not_found), which names `what` is missing, for text that is no id."""
    if not is_uuid(text):
        raise ProblemError(NOT_FOUND, f"There is no such {what}.")
    return text.lower()


def changed_nothing(error: BaseException) -> bool:
    """Whether the operation that raised `error` certainly changed nothing: it was refused, not cut off."""
    if isinstance(error, ProblemError):
        return error.problem.status < 500
    return isinstance(error, Exception) and not isinstance(error, StorageUnavailable | TimeoutError | OSError)
