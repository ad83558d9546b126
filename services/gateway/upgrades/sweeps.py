"""Background sweeps over open upgrades: which have ended, which are past their deadline, and what a stage that was
cut short has spent.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from services.gateway.quota.held_work import Spent
from services.gateway.upgrades.accepted_record import AcceptedRecord
from services.gateway.upgrades.accepted_store import AcceptedStore
from services.gateway.upgrades.publishing import TaskPublisher
from services.gateway.upgrades.record_marks import RecordMarks
from services.gateway.upgrades.stage_clients import SpendingNotTold, StageOut, StageSpending, UpgradeResults
from services.gateway.upgrades.waiting import Waiters
from shared.contracts.contract import format_utc, now_utc
from shared.contracts.upgrade_tasks import Stage
from shared.observability.logs import get_logger

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


_AFTER_DEADLINE = timedelta(seconds=2)
_FIRST_PAUSE = timedelta(seconds=5)
_LONGEST_PAUSE = timedelta(seconds=60)


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


RECORDED_WITHIN = timedelta(seconds=15)
"""What a stage has spent at the last moment is recorded by then."""


log = get_logger(__name__)


class CutShortSweep:
    """Holds the worst case of each stage until it has answered, however long that takes.

    `clock` is one for all replicas: by its own, one that is ahead would ask stages that are still at work.
    """

    def __init__(self, store: AcceptedStore, stages: StageSpending, clock: Callable[[], Awaitable[datetime]]) -> None:
        self._store = store
        self._stages = stages
        self._clock = clock

    async def run(self) -> int:
        """One round; gives of how many everything is known now. Raises StorageUnavailable and what the clock raises."""
        now, after, known, out = await self._clock(), "", 0, set[Stage]()
        while records := await self._store.cut_short(after, _BATCH):
            after = records[-1].upgrade_id
            for record in records:
                known += await self._ask(record, now, out)
        return known

    async def _ask(self, record: AcceptedRecord, now: datetime, out: set[Stage]) -> bool:
        """`out` are the stages that do not answer in this round."""
        work, unasked = record.held_work(), record.unasked_stages()
        if unasked and now < work.expires_at + RECORDED_WITHIN:
            return False
        spent = {item.event_id: item for item in work.spent}
        answered = []
        for stage in unasked:
            found = None if stage in out else await self._spent(stage, record, out)
            if found is not None:
                answered.append(stage)
                spent |= {item.event_id: item for item in found}
        if unasked and not answered:
            return False
        all_known = len(answered) == len(unasked)
        await self._store.mark_asked(
            record.upgrade_id, list(spent.values()), [*record.asked, *answered], all_known=all_known
        )
        return all_known

    async def _spent(self, stage: Stage, record: AcceptedRecord, out: set[Stage]) -> list[Spent] | None:
        try:
            return await self._stages.spent(stage, record.tenant_id, record.upgrade_id)
        except StageOut as error:
            out.add(stage)
            log.warning("stage_out", stage=stage.value, error=str(error))
        except SpendingNotTold as error:
            log.warning("spending_not_told", stage=stage.value, upgrade_id=record.upgrade_id, error=str(error))
        return None
