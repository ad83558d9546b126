"""Compares what admission holds in Redis with the counters that it is made from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from services.usage.comparison import Difference
from services.usage.increments import CounterKey
from shared.contracts.internal_http import TenantCounters
from shared.contracts.plans import Meter

OVERDUE_AFTER = timedelta(minutes=5)
"""How long after its time a hold may still be there: the gateway looks at those that are due every second."""

Amounts = Mapping[Meter, int]


@dataclass(frozen=True)
class StoredHold:
    """One hold; `due` is when it is looked at next, None when nothing says so."""

    hold_id: str
    amounts: Amounts
    due: datetime | None


@dataclass(frozen=True)
class StoredAdmission:
    """The state of one tenant and period, as of one moment. `base` are the counters it knew last, at `version`."""

    key: CounterKey
    version: int
    base: Amounts
    sums: Amounts
    holds: tuple[StoredHold, ...]


class AdmissionStates(Protocol):
    async def states(self) -> tuple[list[StoredAdmission], datetime]:
        """Every state that is in force, and Redis's own time at which the last of them was read.

        Raises AdmissionUnreachable.
        """


class AdmissionUnreachable(Exception):
    """Redis does not answer; the text says no more than how."""


class CountersOf(Protocol):
    async def counters_of(self, keys: Sequence[CounterKey]) -> list[TenantCounters]:
        """The counters that exist."""


@dataclass(frozen=True)
class AdmissionCheck:
    """How many states and holds were compared, and what was wrong."""

    states: int
    holds: int
    differences: list[Difference]


async def check_admission(admission: AdmissionStates, counters: CountersOf) -> AdmissionCheck:
    """Counters only rise, so they are read after the states: a state can only be as new as they are, or older."""
    states, now = await admission.states()
    stored = await counters.counters_of([state.key for state in states])
    by_key = {CounterKey(found.tenant_id, found.period): found for found in stored}
    differences = [
        difference
        for state in states
        for difference in _differences(
            state, by_key.get(state.key) or TenantCounters(tenant_id=state.key.tenant_id, period=state.key.period), now
        )
    ]
    return AdmissionCheck(len(states), sum(len(state.holds) for state in states), sorted(differences))


def _differences(state: StoredAdmission, counters: TenantCounters, now: datetime) -> Iterator[Difference]:
    tenant_id, period = state.key
    if state.version > counters.version:
        yield Difference(tenant_id, "admission", period, "version", state.version, counters.version)
    for meter in Meter:
        counted: int = getattr(counters, meter.value)
        base = state.base[meter]
        # Older counters were lower; of the same version they were these.
        if base > counted or (state.version == counters.version and base != counted):
            yield Difference(tenant_id, "admission base", period, meter.value, base, counted)
        held = sum(hold.amounts[meter] for hold in state.holds)
        if state.sums[meter] != held:
            yield Difference(tenant_id, "sum of holds", period, meter.value, state.sums[meter], held)
    for hold in state.holds:
        if hold.due is None or hold.due < now - OVERDUE_AFTER:
            why = "hold never looked at" if hold.due is None else "hold overdue"
            for meter, amount in hold.amounts.items():
                if amount or not any(hold.amounts.values()):
                    yield Difference(tenant_id, why, f"{period} {hold.hold_id}", meter.value, amount, 0)
