"""How long to wait: for a deadline, and before asking again."""

import random
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_FIRST_BACKOFF_SECONDS = 0.25
_LONGEST_BACKOFF_SECONDS = 4.0


class Clock:
    """Counts down to a deadline (an aware datetime) less a reserve of seconds, on the monotonic clock."""

    def __init__(self, deadline: datetime, reserve_seconds: float) -> None:
        left = (deadline - datetime.now(UTC)).total_seconds() - reserve_seconds
        self._end = time.monotonic() + left

    def left(self) -> float:
        """Seconds left; 0 or less when there are none."""
        return self._end - time.monotonic()


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """What the answer's `Retry-After-Ms` or `Retry-After` (seconds or an HTTP date) asks for; None without one."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        try:
            seconds = float(value) * unit
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        moment = parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, TypeError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def backoff_seconds(failures: int) -> float:
    """A random wait that grows with the failures so far, so that many callers do not come back at the same moment."""
    longest = min(_LONGEST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2.0 ** (failures - 1))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311
