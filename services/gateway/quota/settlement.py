"""Replaces holds by what was really used, and drops them when usage has counted it."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import datetime

from services.gateway.quota.admission import HoldChange
from services.gateway.quota.held_work import HeldWork, UnfinishedWork, all_events, changes_of
from services.gateway.quota.rebuild import MOST_EVENTS
from services.gateway.quota.recording import RECORD_WITHIN_SECONDS
from services.gateway.quota.state import AdmissionState
from services.gateway.quota.usage_client import Usage
from shared.contracts.contract import now_utc

_AT_ONCE = 8
_MOST_WORK = 3_000
_MOST_REMEMBERED = 10_000
RECORDED_WITHIN_SECONDS = RECORD_WITHIN_SECONDS + 0.5


class Settlement:
    """Confirms a tenant's counters in its state, and looks at holds whose time has come."""

    def __init__(
        self,
        state: AdmissionState,
        work: UnfinishedWork,
        usage: Usage,
        *,
        recorded_within_seconds: float = RECORDED_WITHIN_SECONDS,
        clock: Callable[[], datetime] = now_utc,
    ) -> None:
        self._state = state
        self._work = work
        self._usage = usage
        self._recorded_within_seconds = recorded_within_seconds
        self._clock = clock
        self._running: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._done_at: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._missed_since: OrderedDict[str, float] = OrderedDict()

    async def sweep(self) -> int:
        """One round over all tenants that have uncounted work; gives how many. Raises StorageUnavailable,
        UsageUnavailable and AdmissionUnavailable."""
        tenants = list(await self._work.uncounted_tenants())
        for start in range(0, len(tenants), _AT_ONCE):
            await asyncio.gather(*(self.refresh(*tenant) for tenant in tenants[start : start + _AT_ONCE]))
        return len(tenants)

    def seconds_since(self, tenant_id: str, period: str) -> float:
        """How long ago this process has brought the tenant's state up to date."""
        return time.monotonic() - self._done_at.get((tenant_id, period), float("-inf"))

    def note(self, tenant_id: str, period: str) -> None:
        """The state is as new as usage's counters, by this or because it was built anew."""
        self._done_at[(tenant_id, period)] = time.monotonic()
        if len(self._done_at) > _MOST_REMEMBERED:
            self._done_at.popitem(last=False)

    async def refresh(self, tenant_id: str, period: str, due: Sequence[str] = ()) -> None:
        """Takes over what usage has counted. `due` are holds whose time has come. Raises as `sweep`."""
        key = (tenant_id, period)
        running = self._running.get(key)
        if running is None:
            running = self._running[key] = asyncio.create_task(self._refresh(tenant_id, period, due))
            running.add_done_callback(lambda _: self._running.pop(key, None))
        await asyncio.shield(running)

    async def _refresh(self, tenant_id: str, period: str, due: Sequence[str]) -> None:
        await self._give_back_unrecorded(tenant_id, period, due)
        await self._take_over(tenant_id, period, due)
        self.note(tenant_id, period)

    async def _take_over(self, tenant_id: str, period: str, due: Sequence[str]) -> None:
        # Counters before records: what they have was recorded earlier, so none of it keeps its hold beside them.
        quota = await self._usage.quota(tenant_id, period)
        works = await self._held(tenant_id, period, due)
        standing = await self._usage.standing(tenant_id, period, all_events(works), quota.counters.version)
        if standing.as_of != quota.counters.version:
            quota = standing.quota
        missing, now = set(standing.missing), self._clock()
        outcome = await self._state.confirm(tenant_id, period, quota, changes_of(works, missing, now))
        if outcome != "old":  # else somebody is ahead of this, and takes these off in a later round
            await self._work.counted([work.hold_id for work in works if work.is_counted(missing)])

    async def _held(self, tenant_id: str, period: str, due: Sequence[str]) -> list[HeldWork]:
        """The work that holds something, and that of the due holds."""
        works = await self._work.of(tenant_id, period, _MOST_WORK)
        listed = {work.hold_id for work in works}
        found = await self._work.with_hold([hold_id for hold_id in due if hold_id not in listed])
        return _within_limit([*found, *works])

    async def _give_back_unrecorded(self, tenant_id: str, period: str, due: Sequence[str]) -> None:
        """Ends the due holds of what was never recorded, for which nobody owes anything.

        By the clock of one replica a hold may be due that another one has just taken. So it is missed twice, so far
        apart that a record would be there by now.
        """
        unrecorded = await self._unrecorded(due)
        for recorded in {*due} - {*unrecorded}:
            self._missed_since.pop(recorded, None)
        now = time.monotonic()
        drops = []
        for hold_id in unrecorded:
            if now - self._missed_since.setdefault(hold_id, now) >= self._recorded_within_seconds:
                del self._missed_since[hold_id]
                drops.append(HoldChange(hold_id, "drop"))
        while len(self._missed_since) > _MOST_REMEMBERED:
            self._missed_since.popitem(last=False)
        if drops:
            await self._state.confirm(tenant_id, period, None, drops)

    def sure_in_seconds(self, due: Sequence[str]) -> float:
        """How long until those of the due holds that were missed once may be missed again; 0 when there are none."""
        missed = [self._missed_since[hold_id] for hold_id in due if hold_id in self._missed_since]
        return max(0.0, max(missed) + self._recorded_within_seconds - time.monotonic()) if missed else 0.0

    async def _unrecorded(self, hold_ids: Sequence[str]) -> list[str]:
        recorded = {work.hold_id for work in await self._work.with_hold(hold_ids)}
        return [hold_id for hold_id in hold_ids if hold_id not in recorded]


def _within_limit(works: Sequence[HeldWork]) -> list[HeldWork]:
    """As much of the work as one question has room for; the rest is held in full a little longer."""
    chosen, events = [], 0
    for work in works:
        events += len(work.events())
        if events > MOST_EVENTS:
            break
        chosen.append(work)
    return chosen
