"""Compares what admission holds in Redis with the counters that it is made from."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.usage.admission_state import AdmissionStates, StoredAdmission
from services.usage.comparison import Difference
from services.usage.hold_times import MayWait, nothing_waits, overdue_holds
from services.usage.increments import CounterKey
from shared.contracts.internal_http import TenantCounters
from shared.contracts.plans import Meter


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
