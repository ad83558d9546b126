"""Compares the admission states in Redis with the counters they were built from, and finds overdue holds."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from services.usage.counting.increments import CounterKey
from services.usage.reconciling.admission_states import AdmissionStates, StoredAdmission
from services.usage.reconciling.comparison import Difference
from shared.contracts.admission_state import StoredHold
from shared.contracts.internal_http import TenantCounters
from shared.contracts.quota import Meter

OVERDUE_AFTER = timedelta(minutes=5)
"""How long after its due time a hold may still exist. The gateway checks due holds every second."""

_CHECKS = 5
_PAUSE_SECONDS = 2.0

MayBePending = Callable[[CounterKey], bool]
"""Whether events of this tenant and period may not have reached the ledger yet."""


class CountersOf(Protocol):
    """The stored counters."""

    async def counters_of(self, keys: Sequence[CounterKey]) -> list[TenantCounters]:
        """The counters of these tenants and periods; those without any counted event are left out."""


@dataclass(frozen=True)
class AdmissionCheck:
    """The result: numbers of states and holds, and all differences."""

    states: int
    holds: int
    differences: list[Difference]


async def check_admission(
    admission: AdmissionStates,
    ledger: CountersOf,
    may_be_pending: MayBePending,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AdmissionCheck:
    """Checks every admission state and its holds. Raises AdmissionUnreachable and StorageUnavailable.

    Counters never fall, and are read after the states: no state may be newer than its counters.
    """
    states, now = await admission.states()
    stored = await ledger.counters_of([state.key for state in states])
    by_key = {CounterKey(found.tenant_id, found.period): found for found in stored}
    differences: list[Difference] = []
    for state in states:
        counters = by_key.get(state.key) or TenantCounters(tenant_id=state.key.tenant_id, period=state.key.period)
        differences += _differences(state, counters)
        differences += await _behind(admission, state, counters)
    differences += await _overdue_holds(admission, states, now, may_be_pending, sleep)
    return AdmissionCheck(len(states), sum(len(state.holds) for state in states), sorted(differences))


def _differences(state: StoredAdmission, counters: TenantCounters) -> Iterator[Difference]:
    tenant_id, period = state.key
    if state.version > counters.version:
        yield Difference(tenant_id, "admission", period, "version", state.version, counters.version)
    for meter in Meter:
        counted, base, held = _counted(counters, meter), state.base[meter], state.held(meter)
        # The base is a copy of the counters: equal at the same version, at most as high at an older one.
        if base > counted or (state.version == counters.version and base != counted):
            yield Difference(tenant_id, "admission base", period, meter.value, base, counted)
        if state.sums[meter] != held:
            yield Difference(tenant_id, "sum of holds", period, meter.value, state.sums[meter], held)


async def _behind(admission: AdmissionStates, state: StoredAdmission, counters: TenantCounters) -> list[Difference]:
    """The meters in which base and holds together are less than the counters: the tenant could use more than its limit.

    What was counted had been held before, and its hold stays until the base includes it. The counters are newer than
    the state, which may have changed since, so a difference is confirmed on a second reading of the state.
    """
    if not _less_than_counted(state, counters):
        return []
    newer = await admission.state(state.key)
    return _less_than_counted(newer, counters) if newer else []


def _less_than_counted(state: StoredAdmission, counters: TenantCounters) -> list[Difference]:
    tenant_id, period = state.key
    found = []
    for meter in Meter:
        counted, known = _counted(counters, meter), state.base[meter] + state.held(meter)
        if known < counted:
            found.append(Difference(tenant_id, "admission behind", period, meter.value, known, counted))
    return found


async def _overdue_holds(
    admission: AdmissionStates,
    states: Sequence[StoredAdmission],
    now: datetime,
    may_be_pending: MayBePending,
    sleep: Callable[[float], Awaitable[None]],
) -> list[Difference]:
    """The holds of these states that are overdue at `now`, a time of Redis's clock. Raises AdmissionUnreachable.

    A hold of ended work stays until usage has counted its events, however long usage is unavailable. It is overdue only
    when no events of its tenant are pending, and when it still exists some seconds later: usage may have counted them
    just now.
    """
    before = now - OVERDUE_AFTER
    late = {
        state.key: {hold.hold_id for hold in state.holds if hold.ended and _is_late(hold, before)}
        for state in states
        if not may_be_pending(state.key)
    }
    for _ in range(_CHECKS - 1):
        late = {key: ids for key, ids in late.items() if ids}
        if not late:
            break
        await sleep(_PAUSE_SECONDS)
        late = {key: ids & await _late_in(admission, key, before) for key, ids in late.items()}
    return [
        difference
        for state in states
        for hold in state.holds
        if _is_late(hold, before) and (not hold.ended or hold.hold_id in late.get(state.key, ()))
        for difference in _overdue(state.key, hold)
    ]


def _is_late(hold: StoredHold, before: datetime) -> bool:
    return hold.due is None or hold.due < before


async def _late_in(admission: AdmissionStates, key: CounterKey, before: datetime) -> set[str]:
    state = await admission.state(key)
    return {hold.hold_id for hold in state.holds if _is_late(hold, before)} if state else set()


def _overdue(key: CounterKey, hold: StoredHold) -> Iterator[Difference]:
    why = "hold never looked at" if hold.due is None else "hold overdue"
    for meter, amount in hold.amounts.items():
        if amount or not any(hold.amounts.values()):
            yield Difference(key.tenant_id, why, f"{key.period} {hold.hold_id}", meter.value, amount, 0)


def _counted(counters: TenantCounters, meter: Meter) -> int:
    counted: int = getattr(counters, meter.value)
    return counted
