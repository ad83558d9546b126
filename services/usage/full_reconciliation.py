"""Reconciles all there is: ledger, counters and rollups, the holds of admission, and what the topics still have."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from services.usage.admission_check import AdmissionCheck, CountersOf, check_admission
from services.usage.admission_state import AdmissionStates, AdmissionUnreachable
from services.usage.comparison import Difference
from services.usage.increments import CounterKey
from services.usage.pending import Pending, TopicsUnreachable
from services.usage.recount import Reconciliation, StoredLedger, reconcile


class ReadLedger(StoredLedger, CountersOf, Protocol):
    """All that is read of the store."""


@dataclass(frozen=True)
class Reconciled:
    """What was found. A part that could not be reached is None, and `unreached` says why."""

    ledger: Reconciliation
    admission: AdmissionCheck | None
    pending: Pending | None
    unreached: dict[str, str]

    @property
    def differences(self) -> list[Difference]:
        return [*self.ledger.differences, *(self.admission.differences if self.admission else [])]

    @property
    def clean(self) -> bool:
        """Whether nothing was found that is wrong. What is pending is not wrong, it is late."""
        return not self.differences and not self.ledger.uncounted

    @property
    def complete(self) -> bool:
        """Whether everything was compared."""
        return not self.unreached and not self.ledger.moving

    def to_json(self) -> dict[str, Any]:
        admission, pending = self.admission, self.pending
        return {
            "events": self.ledger.events,
            "uncounted": self.ledger.uncounted,
            "tenants": self.ledger.tenants,
            "moving": self.ledger.moving,
            "attempts": self.ledger.attempts,
            "triedSeconds": round(self.ledger.tried_seconds, 3),
            "clean": self.clean,
            "differences": [difference.to_json() for difference in self.differences],
            "holds": None if admission is None else {"states": admission.states, "holds": admission.holds},
            "pending": None
            if pending is None
            else {
                "events": pending.events,
                "allRead": pending.all_read,
                "amounts": [amount.to_json() for amount in pending.amounts],
            },
            "unreached": self.unreached,
        }

    def to_text(self) -> str:
        """What the operator is shown."""
        lines = [
            f"{found.tenant_id}  {found.what} {found.where}  {found.meter}: stored {found.stored},"
            f" ledger {found.ledger}, off by {found.amount:+d}"
            for found in self.differences
        ]
        if self.ledger.uncounted:
            lines.append(f"{self.ledger.uncounted} events of the ledger are not counted")
        if self.ledger.moving:
            lines.append(
                f"{self.ledger.moving} tenants were not compared: old events were removed during each of"
                f" {self.ledger.attempts} readings, for {self.ledger.tried_seconds:.0f} s"
            )
        if self.pending:
            lines += [
                f"{amount.tenant_id}  pending {amount.period}  {amount.meter}: {amount.amount}"
                for amount in self.pending.amounts
            ]
            if not self.pending.all_read:
                lines.append("the topics have more than was read: pending is at least this much")
        if self.unreached:
            lines.append("not compared: " + "; ".join(f"{part}, {why}" for part, why in self.unreached.items()))
        verdict = "no difference" if self.clean else f"{len(self.differences)} differences"
        verdict += "" if self.complete else " in what was compared"
        counted = f"{self.ledger.events} events of {self.ledger.tenants} tenants"
        held = f", {self.admission.holds} holds" if self.admission else ""
        waiting = f", {self.pending.events} events pending" if self.pending and self.pending.events else ""
        return "\n".join([*lines, f"{counted}{held}{waiting}: {verdict}"])


async def reconcile_everything(
    ledger: ReadLedger, admission: AdmissionStates, pending: Callable[[], Awaitable[Pending]]
) -> Reconciled:
    """Raises StorageUnavailable. Without Redis or the broker the rest is reconciled, and the answer says so."""
    unreached: dict[str, str] = {}
    try:
        waiting: Pending | None = await pending()
    except TopicsUnreachable as error:
        waiting, unreached["topics"] = None, str(error)

    def may_wait(key: CounterKey) -> bool:
        return waiting is None or waiting.may_have(key)

    try:
        held: AdmissionCheck | None = await check_admission(admission, ledger, may_wait)
    except AdmissionUnreachable as error:
        held, unreached["holds"] = None, str(error)
    return Reconciled(await reconcile(ledger), held, waiting, unreached)
