"""Reconciles everything: counters and rollups with the ledger, admission states with the counters, topics with the
ledger. `ScheduledReconcile` does so once per interval across all processes.
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
from services.usage.reconciling.recount import LedgerCheck, StoredLedger, check_ledger
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

RUNS = CollectionSpec("reconcile_runs")

_LAST_RUN_ID = "last"
_MOST_LOGGED = 50

_log = get_logger("usage")


class ReadLedger(StoredLedger, CountersOf, Protocol):
    """All queries that reconciling makes on the ledger's store."""


@dataclass(frozen=True)
class ReconcileReport:
    """What was found. A part that could not be reached is None, and `unreached` has the reason by the part's name."""

    ledger: LedgerCheck
    admission: AdmissionCheck | None
    pending: Pending | None
    unreached: dict[str, str]

    @property
    def differences(self) -> list[Difference]:
        return [*self.ledger.differences, *(self.admission.differences if self.admission else [])]

    @property
    def clean(self) -> bool:
        """Whether nothing wrong was found. Pending events are late, not wrong."""
        return not self.differences and not self.ledger.uncounted

    @property
    def complete(self) -> bool:
        """Whether everything was compared."""
        return not self.unreached and not self.ledger.uncompared

    def to_json(self) -> dict[str, Any]:
        admission, pending = self.admission, self.pending
        return {
            "events": self.ledger.events,
            "uncounted": self.ledger.uncounted,
            "tenants": self.ledger.tenants,
            "moving": self.ledger.uncompared,
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
        """The report as lines for an operator; the last one is the verdict."""
        lines = [
            f"{found.tenant_id}  {found.what} {found.where}  {found.meter}: stored {found.stored},"
            f" ledger {found.ledger}, off by {found.amount:+d}"
            for found in self.differences
        ]
        if self.ledger.uncounted:
            lines.append(f"{self.ledger.uncounted} events of the ledger are not counted")
        if self.ledger.uncompared:
            lines.append(
                f"{self.ledger.uncompared} tenants were not compared: old events were removed during each of"
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
        pending = f", {self.pending.events} events pending" if self.pending and self.pending.events else ""
        return "\n".join([*lines, f"{counted}{held}{pending}: {verdict}"])


async def reconcile_everything(
    ledger: ReadLedger, admission: AdmissionStates, read_pending: Callable[[], Awaitable[Pending]]
) -> ReconcileReport:
    """Compares what can be reached: without Redis or the broker the report is incomplete. Raises StorageUnavailable."""
    unreached: dict[str, str] = {}
    try:
        pending: Pending | None = await read_pending()
    except TopicsUnreachable as error:
        pending, unreached["topics"] = None, str(error)

    def may_be_pending(key: CounterKey) -> bool:
        return pending is None or pending.may_have(key)

    try:
        holds: AdmissionCheck | None = await check_admission(admission, ledger, may_be_pending)
    except AdmissionUnreachable as error:
        holds, unreached["holds"] = None, str(error)
    return ReconcileReport(await check_ledger(ledger), holds, pending, unreached)


class ScheduledReconcile:
    """Reconciles when the interval since the last run of any process is over.

    Declares its collection: create it before the database is started.
    """

    def __init__(
        self, database: Database, every: timedelta, reconcile: Callable[[], Awaitable[ReconcileReport]]
    ) -> None:
        self._runs = database.collection(RUNS)
        self._every = every
        self._reconcile = reconcile

    async def run_if_due(self) -> bool:
        """Reconciles if a run is due, and returns whether it was; to be called often. Raises StorageUnavailable."""
        if not await self._claim():
            return False
        try:
            _log_and_measure(await self._reconcile())
        except BaseException:
            RECONCILE_RUNS.labels("failed").inc()
            raise
        return True

    async def _claim(self) -> bool:
        now = now_utc()
        await self._runs.insert_if_absent({"_id": _LAST_RUN_ID, "startedAt": ""})
        due = {"_id": _LAST_RUN_ID, "startedAt": {"$lte": format_utc(now - self._every)}}
        return await self._runs.update_one(due, {"$set": {"startedAt": format_utc(now)}}) == 1


def _log_and_measure(report: ReconcileReport) -> None:
    differences = report.differences
    RECONCILE_RUNS.labels("clean" if report.clean else "different").inc()
    RECONCILE_DIFFERENCES.set(len(differences))
    RECONCILE_UNCOUNTED.set(report.ledger.uncounted)
    RECONCILE_PENDING.set(report.pending.events if report.pending else 0)
    RECONCILED_AT.set_to_current_time()
    for difference in differences[:_MOST_LOGGED]:
        _log.error("reconcile_difference", **difference.to_json())
    _log.info(
        "reconciled",
        clean=report.clean,
        events=report.ledger.events,
        tenants=report.ledger.tenants,
        differences=len(differences),
        uncounted=report.ledger.uncounted,
        moving=report.ledger.uncompared,
        unreached=sorted(report.unreached),
    )
