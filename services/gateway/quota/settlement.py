"""Settles holds: installs usage's newer counters in a tenant's state, and removes from the holds what they count."""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import datetime

from cachetools import LRUCache

from services.gateway.quota.held_work import HeldWork, UnfinishedWork, all_events, changes_of
from services.gateway.quota.holds import HoldChange
from services.gateway.quota.rebuild import MAX_EVENTS
from services.gateway.quota.state import AdmissionState
from services.gateway.quota.unrecorded_holds import SECONDS_BETWEEN_CHECKS, UnrecordedHolds
from services.gateway.quota.usage_client import Usage
from shared.contracts.contract import now_utc
from shared.service.single_flight import SingleFlight

_TENANTS_AT_ONCE = 8
_MAX_WORK = 3_000
_MAX_REMEMBERED = 10_000


class Settlement:
    """Refreshes tenants' states. Several calls for the same tenant and period share one refresh.

    `unrecorded` decides which due holds have no record.
    """

    def __init__(
        self,
        state: AdmissionState,
        work: UnfinishedWork,
        usage: Usage,
        *,
        seconds_between_checks: float = SECONDS_BETWEEN_CHECKS,
        clock: Callable[[], datetime] = now_utc,
    ) -> None:
        self._state = state
        self._work = work
        self._usage = usage
        self._clock = clock
        self.unrecorded = UnrecordedHolds(work, seconds_between_checks)
        self._refreshes = SingleFlight[tuple[str, str], None]()
        self._refreshed_at: LRUCache[tuple[str, str], float] = LRUCache(_MAX_REMEMBERED)

    async def sweep(self) -> int:
        """Refreshes all tenants with uncounted work; returns how many there were.

        Raises StorageUnavailable, UsageUnavailable and AdmissionUnavailable.
        """
        tenants = list(await self._work.uncounted_tenants())
        for start in range(0, len(tenants), _TENANTS_AT_ONCE):
            await asyncio.gather(*(self.refresh(*tenant) for tenant in tenants[start : start + _TENANTS_AT_ONCE]))
        return len(tenants)

    def seconds_since_refresh(self, tenant_id: str, period: str) -> float:
        """The age of the state's counters, as far as this process has refreshed or rebuilt it."""
        return time.monotonic() - self._refreshed_at.get((tenant_id, period), float("-inf"))

    def note_refresh(self, tenant_id: str, period: str) -> None:
        """The state has usage's current counters, after a refresh or a rebuild."""
        self._refreshed_at[(tenant_id, period)] = time.monotonic()

    async def refresh(self, tenant_id: str, period: str, due: Sequence[str] = ()) -> None:
        """Installs usage's counters, and drops those of the `due` holds that have no record. Raises as `sweep`."""
        await self._refreshes.run((tenant_id, period), lambda: self._refresh(tenant_id, period, due))

    async def _refresh(self, tenant_id: str, period: str, due: Sequence[str]) -> None:
        # First, because it works without usage.
        if unrecorded := await self.unrecorded.check(due):
            await self._state.confirm(tenant_id, period, None, [HoldChange(hold_id, "drop") for hold_id in unrecorded])
        await self._install_counters(tenant_id, period, due)
        self.note_refresh(tenant_id, period)

    async def _install_counters(self, tenant_id: str, period: str, due: Sequence[str]) -> None:
        # Counters before records: all that they count was recorded before, so none of it keeps its hold as well.
        quota = await self._usage.quota(tenant_id, period)
        works = await self._held_work(tenant_id, period, due)
        standing = await self._usage.standing(tenant_id, period, all_events(works), quota.counters.version)
        if standing.as_of != quota.counters.version:
            quota = standing.quota
        missing, now = set(standing.missing), self._clock()
        outcome = await self._state.confirm(tenant_id, period, quota, changes_of(works, missing, now))
        # After "old", another replica has installed newer counters; a later round closes the records.
        if outcome != "old":
            await self._work.mark_counted([work.hold_id for work in works if work.is_counted(missing)])

    async def _held_work(self, tenant_id: str, period: str, due: Sequence[str]) -> list[HeldWork]:
        """The work of the due holds first, then other unfinished work, as much as one request to usage can ask about.

        The remaining work keeps its full hold a little longer.
        """
        works = await self._work.of(tenant_id, period, _MAX_WORK)
        listed = {work.hold_id for work in works}
        due_works = await self._work.with_hold([hold_id for hold_id in due if hold_id not in listed])
        chosen, events = [], 0
        for work in [*due_works, *works]:
            events += len(work.events())
            if events > MAX_EVENTS:
                break
            chosen.append(work)
        return chosen
