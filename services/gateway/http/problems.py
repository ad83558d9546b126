"""How a rule of the gateway says no: a problem of the registry, with what its client should know of it."""

from collections.abc import Mapping, Sequence
from datetime import timedelta

from shared.contracts.problems import Problem
from shared.contracts.upgrade_http import FieldProblem
from shared.storage.documents import StorageUnavailable

IDEMPOTENCY_WINDOW = timedelta(hours=24)


class IdempotencyKeyReused(Exception):
    """The key came with another body than the first time."""


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
    """What a repeated request is to make was made by an earlier one, and is gone: repeating it makes nothing."""


def changed_nothing(error: BaseException) -> bool:
    """Whether what raised this has surely changed nothing: it was refused, not cut off and not out of reach."""
    if isinstance(error, ProblemError):
        return error.problem.status < 500
    return isinstance(error, Exception) and not isinstance(error, StorageUnavailable | TimeoutError | OSError)
