"""Reconciles once in an interval, in whichever process comes first, and tells it by metrics and logs."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

from services.usage.full_reconciliation import Reconciled
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
