"""Retry policy of all consumers and of dead-letter writes: how many attempts, and the pause between them."""

import random

ATTEMPTS_AT_UNKNOWN_ERRORS = 3
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_MOST_DOUBLINGS = 10


def exponential_pause(failures: int) -> float:
    """Seconds to wait after that many failures (1 or more): 0.1 doubling up to 5, reduced by up to half at random."""
    pause = _FIRST_PAUSE_SECONDS * 2 ** min(failures - 1, _MOST_DOUBLINGS)
    return float(min(pause, _LONGEST_PAUSE_SECONDS)) * random.uniform(0.5, 1)  # noqa: S311
