"""Reconciles the ledger, counters, rollups, holds and topics: on demand, or once per interval in one of the
replicas.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from services.usage.counting.increments import CounterKey
from services.usage.reconciling.admission_check import AdmissionCheck, CountersOf, check_admission
from services.usage.reconciling.admission_states import AdmissionStates, AdmissionUnreachable
from services.usage.reconciling.comparison import Difference
from services.usage.reconciling.pending import Pending, TopicsUnreachable
from services.usage.reconciling.recount import Reconciliation, StoredLedger, reconcile
from shared.contracts.contract import format_utc, now_utc
from shared.observability.logs import get_logger
from shared.observability.metrics import (
    RECONCILE_DIFFERENCES,
    RECONCILE_PENDING,
    RECONCILE_RUNS,
    RECONCILE_UNCOUNTED,
    RECONCILED_AT,
)
from shared.storage.documents import CollectionSpec, Database


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


RUNS = CollectionSpec("reconcile_runs")
_ID = "last"
_MOST_LOGGED = 50

_log = get_logger("usage")


class ScheduledReconcile:
    """To be asked often: `run_if_due` does nothing until the interval is over. Make it before the database starts."""

    def __init__(self, database: Database, every: timedelta, reconcile: Callable[[], Awaitable[Reconciled]]) -> None:
        self._runs = database.collection(RUNS)
        self._every = every
        self._reconcile = reconcile

    async def run_if_due(self) -> bool:
        """Whether it was reconciled now. Raises StorageUnavailable."""
        if not await self._claim():
            return False
        try:
            tell(await self._reconcile())
        except BaseException:
            RECONCILE_RUNS.labels("failed").inc()
            raise
        return True

    async def _claim(self) -> bool:
        now = now_utc()
        await self._runs.insert_if_absent({"_id": _ID, "startedAt": ""})
        due = {"_id": _ID, "startedAt": {"$lte": format_utc(now - self._every)}}
        return await self._runs.update_one(due, {"$set": {"startedAt": format_utc(now)}}) == 1


def tell(found: Reconciled) -> None:
    """One line of log with the sums, one for each difference, and the gauges."""
    differences = found.differences
    RECONCILE_RUNS.labels("clean" if found.clean else "different").inc()
    RECONCILE_DIFFERENCES.set(len(differences))
    RECONCILE_UNCOUNTED.set(found.ledger.uncounted)
    RECONCILE_PENDING.set(found.pending.events if found.pending else 0)
    RECONCILED_AT.set_to_current_time()
    for difference in differences[:_MOST_LOGGED]:
        _log.error("reconcile_difference", **difference.to_json())
    _log.info(
        "reconciled",
        clean=found.clean,
        events=found.ledger.events,
        tenants=found.ledger.tenants,
        differences=len(differences),
        uncounted=found.ledger.uncounted,
        moving=found.ledger.moving,
        unreached=sorted(found.unreached),
    )
