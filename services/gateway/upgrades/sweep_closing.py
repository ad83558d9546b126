"""Finds out which open upgrades have ended. (Those that usage has counted are closed by the settlement.)"""

from datetime import timedelta

from services.gateway.siblings.upgrader import UpgradeResults
from services.gateway.upgrades.accepted_store import AcceptedStore
from services.gateway.upgrades.record_marks import RecordMarks
from services.gateway.upgrades.waiting import Waiters
from shared.contracts.contract import format_utc, now_utc

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
        found = 0
        await self._marks.flush()
        async for ids in self._store.open_ids_before(format_utc(now_utc() - _OPEN_FOR), _BATCH):
            for result in await self._results.among(ids):
                await self._waiters.on_result(result)
                found += 1
        await self._marks.flush()
        return found
