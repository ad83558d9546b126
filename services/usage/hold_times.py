"""Which holds of admission are past their time although somebody should have looked at them."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import datetime, timedelta

from services.usage.admission_state import AdmissionStates, StoredAdmission, StoredHold
from services.usage.comparison import Difference
from services.usage.increments import CounterKey

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
