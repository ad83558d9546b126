"""Builds a tenant's admission state anew: for a new month, and after Redis was lost, emptied or restarted.

What must not be missed is an upgrade that a replica admitted with the lost state and has not recorded yet. Whoever
admits records within RECORD_WITHIN_SECONDS or takes the record back, so the records are read only when this Redis has
been known for longer than that. A token, set before they are read and gone when Redis is emptied meanwhile, keeps a
slow rebuild from installing what it read before.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from services.gateway.quota.held_work import RateRecords, UnfinishedWork, all_events
from services.gateway.quota.recording import RECORD_WITHIN_SECONDS
from services.gateway.quota.state import RATE_WINDOW_MS, AdmissionState
from services.gateway.quota.usage_client import Usage
from shared.contracts.contract import new_id, now_utc
from shared.observability.logs import get_logger

KNOWN_FOR_SECONDS = RECORD_WITHIN_SECONDS + 0.5
MOST_WORK = 20_000
"""A tenant with more unfinished work is admitted again once there is less: a part of it would say too little."""
MOST_EVENTS = 10_000
_ATTEMPTS = 5

log = get_logger(__name__)


class RebuildFailed(Exception):
    """Redis kept changing while the state was built, or there was too much to build it from."""


class Rebuild:
    """Rebuilds states, each by one task of this process at a time."""

    def __init__(
        self,
        state: AdmissionState,
        work: UnfinishedWork,
        usage: Usage,
        rates: RateRecords,
        *,
        known_for_seconds: float = KNOWN_FOR_SECONDS,
        clock: Callable[[], datetime] = now_utc,
    ) -> None:
        self._state = state
        self._work = work
        self._usage = usage
        self._rates = rates
        self._known_for_seconds = known_for_seconds
        self._clock = clock
        self._running: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def __call__(self, tenant_id: str, period: str) -> None:
        """Returns when the state is there.

        Raises AdmissionUnavailable, UsageUnavailable, StorageUnavailable and RebuildFailed; nothing is installed then.
        """
        key = (tenant_id, period)
        running = self._running.get(key)
        if running is None:
            running = self._running[key] = asyncio.create_task(self._rebuild(tenant_id, period))
            running.add_done_callback(lambda _: self._running.pop(key, None))
        await asyncio.shield(running)

    async def _rebuild(self, tenant_id: str, period: str) -> None:
        started = time.monotonic()
        for _ in range(_ATTEMPTS):
            run_id, token = await self._state.begin_rebuild(tenant_id, period, new_id())
            if token == "warm":  # noqa: S105 -- what the script answers
                return
            if not await self._is_known_long_enough(run_id):
                continue
            outcome = await self._read_and_install(tenant_id, period, run_id, token)
            if outcome != "lost":
                log.info("admission_rebuilt", outcome=outcome, milliseconds=round((time.monotonic() - started) * 1000))
                return
        raise RebuildFailed

    async def _is_known_long_enough(self, run_id: str) -> bool:
        """Waits until this Redis is old enough; False when it is another one or an emptied one by then."""
        while True:
            known_as, age = await self._state.incarnation_age()
            if known_as != run_id:
                return False
            if age >= self._known_for_seconds:
                return True
            await asyncio.sleep(self._known_for_seconds - age + 0.01)

    async def _read_and_install(self, tenant_id: str, period: str, run_id: str, token: str) -> str:
        # Records first: what is closed by then is in the counters that are read after.
        works = await self._work.of(tenant_id, period, MOST_WORK + 1)
        if len(works) > MOST_WORK:
            log.warning("admission_not_rebuilt", unfinished=len(works))
            raise RebuildFailed
        events = all_events(works)
        standing = await self._usage.standing(tenant_id, period, events[:MOST_EVENTS])
        missing = {*standing.missing, *events[MOST_EVENTS:]}
        now = self._clock()
        await self._restore_rates(tenant_id, now)
        holds = [hold for work in works if (hold := work.to_install(missing, now)) is not None]
        return await self._state.install(run_id, token, standing.quota, holds)

    async def _restore_rates(self, tenant_id: str, now: datetime) -> None:
        """Who was at the limit before Redis was lost still is. Nobody is admitted yet, so nothing races with it."""
        rates = await self._rates.rates(tenant_id, now - timedelta(milliseconds=RATE_WINDOW_MS))
        await asyncio.gather(
            *(self._state.restore_rate(tenant_id, subject, accepted) for subject, accepted in rates.items())
        )
