"""Hands upgrades that nobody has ended by their deadline to the upgrader, marked expired, until they have ended."""

from datetime import timedelta

from services.gateway.siblings.upgrader import UpgradeResults
from services.gateway.upgrades.accepted_record import AcceptedRecord
from services.gateway.upgrades.accepted_store import AcceptedStore
from services.gateway.upgrades.publishing import TaskPublisher
from services.gateway.upgrades.waiting import Waiters
from shared.contracts.contract import format_utc, now_utc

_AFTER_DEADLINE = timedelta(seconds=2)
_FIRST_PAUSE = timedelta(seconds=5)
_LONGEST_PAUSE = timedelta(seconds=60)
_BATCH = 200


class DeadlineSweep:
    """One round looks at all open records that are past their deadline."""

    def __init__(
        self, store: AcceptedStore, results: UpgradeResults, waiters: Waiters, publisher: TaskPublisher
    ) -> None:
        self._store = store
        self._results = results
        self._waiters = waiters
        self._publisher = publisher

    async def run(self) -> int:
        """Gives how many were handed over. Raises StorageUnavailable and ResultsUnavailable."""
        overdue = format_utc(now_utc() - _AFTER_DEADLINE)
        after, handed_over = "", 0
        while records := await self._store.overdue(overdue, after, _BATCH):
            after = records[-1].upgrade_id
            due = [record for record in records if self._is_due(record)]
            ended = await self._results.among([record.upgrade_id for record in due])
            for result in ended:
                await self._waiters.on_result(result)
            gone = {result.upgrade_id for result in ended}
            for record in due:
                if record.upgrade_id not in gone:
                    handed_over += await self._hand_over(record)
        return handed_over

    @staticmethod
    def _is_due(record: AcceptedRecord) -> bool:
        return record.next_expiry is None or record.next_expiry <= now_utc()

    async def _hand_over(self, record: AcceptedRecord) -> bool:
        pause = min(_FIRST_PAUSE * 2 ** min(record.expiries, 10), _LONGEST_PAUSE)
        if not await self._store.claim_expiry(record, format_utc(now_utc() + pause)):
            return False
        return await self._publisher.publish_expired(record)
