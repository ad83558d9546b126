"""Closes records: finds out which open upgrades have ended, and which ended ones usage has counted."""

from datetime import timedelta

from services.gateway.accepted_store import AcceptedStore
from services.gateway.record_marks import RecordMarks
from services.gateway.upgrader_http import UpgradeResults
from services.gateway.waiting import Waiters
from shared.contracts.contract import format_utc, now_utc
from shared.contracts.ids import derived_id
from shared.messaging.ledger_client import Ledger

_OPEN_FOR = timedelta(seconds=3)
_BATCH = 200


class EndingSweep:
    """Ends that nobody told this gateway of: the reply was lost, or the replica it went to."""

    def __init__(self, store: AcceptedStore, results: UpgradeResults, waiters: Waiters, marks: RecordMarks) -> None:
        self._store = store
        self._results = results
        self._waiters = waiters
        self._marks = marks

    async def run(self) -> int:
        """One round; gives how many ends were found. Raises StorageUnavailable and ResultsUnavailable."""
        after, found = "", 0
        await self._marks.flush()
        while records := await self._store.open_before(format_utc(now_utc() - _OPEN_FOR), after, _BATCH):
            after = records[-1].upgrade_id
            for result in await self._results.among([record.upgrade_id for record in records]):
                await self._waiters.on_result(result)
                found += 1
        await self._marks.flush()
        return found


class CountedSweep:
    """A record is done with when the ledger has its upgrade's end."""

    def __init__(self, store: AcceptedStore, ledger: Ledger) -> None:
        self._store = store
        self._ledger = ledger

    async def run(self) -> int:
        """One round; gives how many records were closed. Raises StorageUnavailable and LedgerUnavailable."""
        after, closed = "", 0
        while ids := await self._store.uncounted(after, _BATCH):
            after = ids[-1]
            event_ids = {upgrade_id: derived_id(upgrade_id, "completed") for upgrade_id in ids}
            missing = await self._ledger.missing(list(event_ids.values()))
            counted = [upgrade_id for upgrade_id, event_id in event_ids.items() if event_id not in missing]
            if counted:
                await self._store.mark_counted(counted)
            closed += len(counted)
        return closed
