"""Finds due holds that have no record. A hold counts as unrecorded when its record was missing at two checks.

One check is not enough. By the clock of one replica a hold may be due that another replica has just taken and is about
to record. The checks are so far apart that the record would exist by the second one.
"""

import asyncio
import time
from collections.abc import Sequence

from cachetools import LRUCache

from services.gateway.quota.held_work import UnfinishedWork
from services.gateway.quota.recording import RECORD_WITHIN_SECONDS

SECONDS_BETWEEN_CHECKS = RECORD_WITHIN_SECONDS + 0.5
_MAX_REMEMBERED = 10_000


class UnrecordedHolds:
    """Remembers which holds had no record at their first check, and when (monotonic seconds)."""

    def __init__(self, work: UnfinishedWork, seconds_between_checks: float) -> None:
        self._work = work
        self._seconds_between_checks = seconds_between_checks
        self._missing_since: LRUCache[str, float] = LRUCache(_MAX_REMEMBERED)

    async def check(self, hold_ids: Sequence[str]) -> list[str]:
        """Those of the due holds whose record is missing for the second time. Raises StorageUnavailable."""
        recorded = {work.hold_id for work in await self._work.with_hold(hold_ids)}
        for hold_id in recorded:
            self._missing_since.pop(hold_id, None)
        now = time.monotonic()
        confirmed = [
            hold_id
            for hold_id in hold_ids
            if hold_id not in recorded
            and now - self._missing_since.setdefault(hold_id, now) >= self._seconds_between_checks
        ]
        for hold_id in confirmed:
            self._missing_since.pop(hold_id, None)
        return confirmed

    async def wait_for_second_check(self, hold_ids: Sequence[str]) -> bool:
        """Waits until those of the holds that were missing once can be checked again. False when there are none."""
        missing = [self._missing_since[hold_id] for hold_id in hold_ids if hold_id in self._missing_since]
        if not missing:
            return False
        # A little longer, because timers may be early by up to a millisecond.
        await asyncio.sleep(max(missing) + self._seconds_between_checks - time.monotonic() + 0.01)
        return True
