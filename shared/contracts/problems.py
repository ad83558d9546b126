"""The registry of error codes for problem details (RFC 9457), and of the warning codes of an upgrade."""

from dataclasses import dataclass
from enum import StrEnum

PROBLEM_MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class Problem:
    """One error code with its HTTP status and title."""

    code: str
    status: int
    title: str


MALFORMED_JSON = Problem("malformed_json", 400, "The body is not valid JSON")
INVALID_HEADER = Problem("invalid_header", 400, "A header is not valid")
UNAUTHENTICATED = Problem("unauthenticated", 401, "Authentication is required")
FORBIDDEN = Problem("forbidden", 403, "Your role does not allow this")
NOT_FOUND = Problem("not_found", 404, "Not found")
METHOD_NOT_ALLOWED = Problem("method_not_allowed", 405, "Method not allowed")
CONFLICT = Problem("conflict", 409, "Conflict")
TOO_LARGE = Problem("too_large", 413, "The body is too large")
UNSUPPORTED_MEDIA_TYPE = Problem("unsupported_media_type", 415, "The media type is not supported")
INVALID_REQUEST = Problem("invalid_request", 422, "The request is not valid")
IDEMPOTENCY_KEY_REUSED = Problem("idempotency_key_reused", 422, "The idempotency key was used for another request")
RATE_LIMITED = Problem("rate_limited", 429, "Too many requests")
QUOTA_EXCEEDED = Problem("quota_exceeded", 429, "The quota does not suffice")
INTERNAL_ERROR = Problem("internal_error", 500, "Internal error")
UNAVAILABLE = Problem("unavailable", 503, "Temporarily unavailable")

PROBLEMS: dict[str, Problem] = {
    problem.code: problem for problem in list(globals().values()) if isinstance(problem, Problem)
}


class WarningCode(StrEnum):
    """Codes of the warnings in an answer. Clients must accept codes they do not know."""

    MODEL_UNAVAILABLE = "model_unavailable"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    SUMMARY_SKIPPED = "summary_skipped"
    RETRIEVAL_SKIPPED = "retrieval_skipped"
    PLACEHOLDER_DROPPED = "placeholder_dropped"
    PLACEHOLDER_INVENTED = "placeholder_invented"
    PLACEHOLDER_DOUBLED = "placeholder_doubled"
    INJECTION_REMOVED = "injection_removed"
    OFFLINE_MODEL = "offline_model"
    PRICE_UNKNOWN = "price_unknown"
    CACHED_ANSWER = "cached_answer"
    REWRITE_NOT_BETTER = "rewrite_not_better"
    FALLBACK_MODEL = "fallback_model"
    TEMPLATE_REFUSED = "template_refused"
