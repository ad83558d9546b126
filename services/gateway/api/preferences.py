"""What a client asks for in headers: how long to wait (`Prefer`) and not to do it twice (`Idempotency-Key`)."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.gateway.problems import ProblemError
from shared.contracts.problems import INVALID_HEADER

DEFAULT_WAIT_SECONDS = 30
LONGEST_WAIT_SECONDS = 60
_LONGEST_KEY = 255


@dataclass(frozen=True)
class Preference:
    """How long to wait for the result, in seconds, and how to tell the client (`Preference-Applied`)."""

    wait_seconds: int
    applied: str


def preference_of(headers: Sequence[str]) -> Preference:
    """Reads `Prefer` (RFC 7240): the first of a preference counts, what is not understood is ignored."""
    asks: dict[str, str] = {}
    for token in ",".join(headers).split(","):
        name, _, value = token.partition(";")[0].partition("=")
        asks.setdefault(name.strip().lower(), value.strip().strip('"'))
    wait = asks.get("wait", "")
    seconds = min(int(wait), LONGEST_WAIT_SECONDS) if wait.isascii() and wait.isdigit() and len(wait) < 10 else None
    if "respond-async" in asks:
        return Preference(seconds, f"respond-async, wait={seconds}") if seconds else Preference(0, "respond-async")
    seconds = DEFAULT_WAIT_SECONDS if seconds is None else seconds
    return Preference(seconds, f"wait={seconds}")


def idempotency_key_of(headers: Sequence[str]) -> str | None:
    """The request's `Idempotency-Key`, or None. Raises ProblemError (invalid_header) for one that is not valid."""
    if not headers:
        return None
    key = headers[0]
    printable = key.isascii() and key.isprintable() and bool(key.strip())
    if len(set(headers)) > 1 or not printable or len(key) > _LONGEST_KEY:
        raise ProblemError(
            INVALID_HEADER, f"Idempotency-Key must be one text of 1 to {_LONGEST_KEY} printable characters."
        )
    return key
