"""Rebuilds a tenant's admission state in Redis: for a new month, and after Redis was restarted or emptied.

The state comes from usage's counters and the gateway's records. It must not miss an upgrade that a replica admitted
with the lost state and has not recorded yet. Every admission is recorded within RECORD_WITHIN_SECONDS or withdrawn, so
the records are read only once this Redis has been known for longer than that. A token, set before they are read and
lost when Redis is emptied, keeps a slow rebuild from installing an outdated state.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from services.gateway.quota.held_work import RateRecords, UnfinishedWork, all_events
from services.gateway.quota.recording import RECORD_WITHIN_SECONDS
from services.gateway.quota.state import RATE_WINDOW_MS, AdmissionState, Installed
from services.gateway.quota.usage_client import Usage
from shared.contracts.contract import new_id, now_utc
from shared.observability.logs import get_logger
from shared.service.single_flight import SingleFlight

KNOWN_FOR_SECONDS = RECORD_WITHIN_SECONDS + 0.5
MAX_WORK = 20_000
"""A tenant with more unfinished work is not admitted until there is less: a state from a part of it would be wrong."""
MAX_EVENTS = 10_000
"""The most events that one request to usage can ask about."""
_ATTEMPTS = 5

log = get_logger(__name__)


class RebuildFailed(Exception):
    """Redis kept changing during the rebuild, or the tenant has too much unfinished work."""


class Rebuild:
    """Rebuilds states. Several calls for the same tenant and period share one rebuild."""

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
        self._rebuilds = SingleFlight[tuple[str, str], None]()

    async def __call__(self, tenant_id: str, period: str) -> None:
        """Returns when the state is installed.

        Raises AdmissionUnavailable, UsageUnavailable, StorageUnavailable and RebuildFailed; nothing is installed then.
        """
        await self._rebuilds.run((tenant_id, period), lambda: self._rebuild(tenant_id, period))

    async def _rebuild(self, tenant_id: str, period: str) -> None:
        started = time.monotonic()
        for _ in range(_ATTEMPTS):
            run_id, token = await self._state.begin_rebuild(tenant_id, period, new_id())
            if token == "warm":  # noqa: S105 -- an answer of the script
                return
            if not await self._wait_until_known(run_id):
                continue
            outcome = await self._read_and_install(tenant_id, period, run_id, token)
            if outcome != "lost":
                log.info("admission_rebuilt", outcome=outcome, milliseconds=round((time.monotonic() - started) * 1000))
                return
        raise RebuildFailed

    async def _wait_until_known(self, run_id: str) -> bool:
        """Waits until Redis has been known for long enough; False when it was restarted or emptied meanwhile."""
        while True:
            known_as, age = await self._state.incarnation_age()
            if known_as != run_id:
                return False
            if age >= self._known_for_seconds:
                return True
            await asyncio.sleep(self._known_for_seconds - age + 0.01)

    async def _read_and_install(self, tenant_id: str, period: str, run_id: str, token: str) -> Installed:
        # Records before counters: a record that is closed by now is included in the counters.
        works = await self._work.of(tenant_id, period, MAX_WORK + 1)
        if len(works) > MAX_WORK:
            log.warning("admission_not_rebuilt", unfinished=len(works))
            raise RebuildFailed
        events = all_events(works)
        standing = await self._usage.standing(tenant_id, period, events[:MAX_EVENTS])
        missing = {*standing.missing, *events[MAX_EVENTS:]}
        now = self._clock()
        await self._restore_rates(tenant_id, now)
        holds = [hold for work in works if (hold := work.stored_hold(missing, now)) is not None]
        return await self._state.install(run_id, token, standing.quota, holds)

    async def _restore_rates(self, tenant_id: str, now: datetime) -> None:
        """Callers at their rate limit stay limited. The state is cold, so no admission runs at the same time."""
        rates = await self._rates.rates(tenant_id, now - timedelta(milliseconds=RATE_WINDOW_MS))
        await asyncio.gather(
            *(self._state.restore_rate(tenant_id, subject, accepted) for subject, accepted in rates.items())
        )
