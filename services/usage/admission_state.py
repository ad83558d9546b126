"""What admission keeps in Redis for a tenant and a period, as reconciling sees it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from services.usage.increments import CounterKey
from shared.contracts.plans import Meter

Amounts = Mapping[Meter, int]


@dataclass(frozen=True)
class StoredHold:
    """One hold; `due` is when it is looked at next, None when nothing says so. `ended`: what it stands for is over."""

    hold_id: str
    amounts: Amounts
    due: datetime | None
    ended: bool


@dataclass(frozen=True)
class StoredAdmission:
    """The state of one tenant and period, as of one moment. `base` are the counters it knew last, at `version`."""

    key: CounterKey
    version: int
    base: Amounts
    sums: Amounts
    holds: tuple[StoredHold, ...]

    def held(self, meter: Meter) -> int:
        """All its holds, one by one."""
        return sum(hold.amounts[meter] for hold in self.holds)


class AdmissionStates(Protocol):
    """Both raise AdmissionUnreachable."""

    async def states(self) -> tuple[list[StoredAdmission], datetime]:
        """Every state that is in force, and Redis's own time at which the last of them was read."""

    async def state(self, key: CounterKey) -> StoredAdmission | None:
        """One of them, as it is now; None when it is not in force."""


class AdmissionUnreachable(Exception):
    """Redis does not answer; the text says no more than how."""
