"""Compares the admission states in Redis with the counters they were built from, and finds holds that are overdue."""

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
"""How long after its time a hold may still be there: the gateway looks at those that are due every second."""

MayWait = Callable[[CounterKey], bool]
"""Whether events of this tenant and period may still be on their way to the ledger."""

_LOOKS = 5
_PAUSE_SECONDS = 2.0


def nothing_waits(key: CounterKey) -> bool:
    return False


async def overdue_holds(
    admission: AdmissionStates,
    states: Sequence[StoredAdmission],
    now: datetime,
    may_wait: MayWait,
    sleep: Callable[[float], Awaitable[None]],
) -> list[Difference]:
    """The holds of these states that are overdue `now`, by Redis's time. Raises AdmissionUnreachable.

    The hold of work that has ended waits for usage to count its events, for as long as usage is out. So it is overdue
    only when none are on their way, and when it is still there after some seconds: usage may just have counted them.
    """
    before = now - OVERDUE_AFTER
    late = {
        state.key: {hold.hold_id for hold in state.holds if hold.ended and _is_late(hold, before)}
        for state in states
        if not may_wait(state.key)
    }
    for _ in range(_LOOKS - 1):
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
        for difference in _named(state.key, hold)
    ]


def _is_late(hold: StoredHold, before: datetime) -> bool:
    return hold.due is None or hold.due < before


async def _late_in(admission: AdmissionStates, key: CounterKey, before: datetime) -> set[str]:
    state = await admission.state(key)
    return {hold.hold_id for hold in state.holds if _is_late(hold, before)} if state else set()


def _named(key: CounterKey, hold: StoredHold) -> Iterator[Difference]:
    why = "hold never looked at" if hold.due is None else "hold overdue"
    for meter, amount in hold.amounts.items():
        if amount or not any(hold.amounts.values()):
            yield Difference(key.tenant_id, why, f"{key.period} {hold.hold_id}", meter.value, amount, 0)


class CountersOf(Protocol):
    async def counters_of(self, keys: Sequence[CounterKey]) -> list[TenantCounters]:
        """The counters that exist."""


@dataclass(frozen=True)
class AdmissionCheck:
    """How many states and holds were compared, and what was wrong."""

    states: int
    holds: int
    differences: list[Difference]


async def check_admission(
    admission: AdmissionStates,
    ledger: CountersOf,
    may_wait: MayWait = nothing_waits,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AdmissionCheck:
    """Counters only rise, so they are read after the states: a state can only be as new as they are, or older.

    Raises AdmissionUnreachable and StorageUnavailable.
    """
    states, now = await admission.states()
    stored = await ledger.counters_of([state.key for state in states])
    by_key = {CounterKey(found.tenant_id, found.period): found for found in stored}
    differences: list[Difference] = []
    for state in states:
        counters = by_key.get(state.key) or TenantCounters(tenant_id=state.key.tenant_id, period=state.key.period)
        differences += _differences(state, counters)
        differences += await _behind(admission, state, counters)
    differences += await overdue_holds(admission, states, now, may_wait, sleep)
    return AdmissionCheck(len(states), sum(len(state.holds) for state in states), sorted(differences))


def _differences(state: StoredAdmission, counters: TenantCounters) -> Iterator[Difference]:
    tenant_id, period = state.key
    if state.version > counters.version:
        yield Difference(tenant_id, "admission", period, "version", state.version, counters.version)
    for meter in Meter:
        counted, base, held = _counted(counters, meter), state.base[meter], state.held(meter)
        # Older counters were lower; of the same version they were these.
        if base > counted or (state.version == counters.version and base != counted):
            yield Difference(tenant_id, "admission base", period, meter.value, base, counted)
        if state.sums[meter] != held:
            yield Difference(tenant_id, "sum of holds", period, meter.value, state.sums[meter], held)


async def _behind(admission: AdmissionStates, state: StoredAdmission, counters: TenantCounters) -> list[Difference]:
    """What was counted was held before, and is until the base has it: base and holds are never less than counters.

    The counters are newer than the state, which may have moved on with them, so the state is read once more.
    """
    if not _lacking(state, counters):
        return []
    newer = await admission.state(state.key)
    return _lacking(newer, counters) if newer else []


def _lacking(state: StoredAdmission, counters: TenantCounters) -> list[Difference]:
    tenant_id, period = state.key
    found = []
    for meter in Meter:
        counted, known = _counted(counters, meter), state.base[meter] + state.held(meter)
        if known < counted:
            found.append(Difference(tenant_id, "admission behind", period, meter.value, known, counted))
    return found


def _counted(counters: TenantCounters, meter: Meter) -> int:
    counted: int = getattr(counters, meter.value)
    return counted
