"""Background sweeps over accepted upgrades: missed ends, missed deadlines, and usage of stages that were cut short."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from services.gateway.quota.held_work import Spent
from services.gateway.upgrades.accepted_record import AcceptedRecord
from services.gateway.upgrades.accepted_store import AcceptedStore
from services.gateway.upgrades.publishing import TaskPublisher
from services.gateway.upgrades.record_marks import RecordMarks
from services.gateway.upgrades.stage_clients import StageSpending, StageUnavailable, StageUsageUnknown, UpgradeResults
from services.gateway.upgrades.waiting import Waiters
from shared.contracts.contract import format_utc, now_utc
from shared.contracts.upgrade_tasks import Stage
from shared.observability.logs import get_logger

_OPEN_FOR = timedelta(seconds=3)
_AFTER_DEADLINE = timedelta(seconds=2)
_FIRST_EXPIRY_PAUSE = timedelta(seconds=5)
_LONGEST_EXPIRY_PAUSE = timedelta(seconds=60)
# By then, a stage has recorded what it used just before its work had to end.
_USAGE_RECORDED_WITHIN = timedelta(seconds=15)
_BATCH = 200

log = get_logger(__name__)


class EndingSweep:
    """Finds ended upgrades whose reply was lost, or went to a replica that has crashed."""

    def __init__(self, store: AcceptedStore, results: UpgradeResults, waiters: Waiters, marks: RecordMarks) -> None:
        self._store = store
        self._results = results
        self._waiters = waiters
        self._marks = marks

    async def run(self) -> int:
        """Runs one round; returns how many ends were found. Raises StorageUnavailable and ResultsUnavailable."""
        found = 0
        await self._marks.flush()
        async for ids in self._store.open_ids_before(format_utc(now_utc() - _OPEN_FOR), _BATCH):
            for result in await self._results.among(ids):
                await self._waiters.on_result(result)
                found += 1
        await self._marks.flush()
        return found


class DeadlineSweep:
    """Sends open upgrades past their deadline to the upgrader, with growing pauses until they end."""

    def __init__(
        self, store: AcceptedStore, results: UpgradeResults, waiters: Waiters, publisher: TaskPublisher
    ) -> None:
        self._store = store
        self._results = results
        self._waiters = waiters
        self._publisher = publisher

    async def run(self) -> int:
        """Runs one round; returns how many upgrades were sent. Raises StorageUnavailable and ResultsUnavailable."""
        overdue = format_utc(now_utc() - _AFTER_DEADLINE)
        after, published = "", 0
        while records := await self._store.overdue(overdue, after, _BATCH):
            after = records[-1].upgrade_id
            due = [record for record in records if self._is_due(record)]
            ended = await self._results.among([record.upgrade_id for record in due])
            for result in ended:
                await self._waiters.on_result(result)
            ended_ids = {result.upgrade_id for result in ended}
            for record in due:
                if record.upgrade_id not in ended_ids:
                    published += await self._publish_expired(record)
        return published

    @staticmethod
    def _is_due(record: AcceptedRecord) -> bool:
        return record.next_expiry is None or record.next_expiry <= now_utc()

    async def _publish_expired(self, record: AcceptedRecord) -> bool:
        pause = min(_FIRST_EXPIRY_PAUSE * 2 ** min(record.expiries, 10), _LONGEST_EXPIRY_PAUSE)
        if not await self._store.claim_expiry(record, format_utc(now_utc() + pause)):
            return False
        return await self._publisher.publish_expired(record)


class CutShortSweep:
    """Asks stages for their usage of upgrades that ended while the stages may have been running.

    The hold keeps the worst case of each stage until it has reported. `clock` is shared by all replicas: a replica
    whose own clock is ahead would ask stages that are still running.
    """

    def __init__(self, store: AcceptedStore, stages: StageSpending, clock: Callable[[], Awaitable[datetime]]) -> None:
        self._store = store
        self._stages = stages
        self._clock = clock

    async def run(self) -> int:
        """Runs one round; returns how many upgrades have all their usage known now.

        Raises StorageUnavailable and what the clock raises.
        """
        now, after, completed, unavailable = await self._clock(), "", 0, set[Stage]()
        while records := await self._store.cut_short(after, _BATCH):
            after = records[-1].upgrade_id
            for record in records:
                completed += await self._ask_stages(record, now, unavailable)
        return completed

    async def _ask_stages(self, record: AcceptedRecord, now: datetime, unavailable: set[Stage]) -> bool:
        """Whether all usage is known now. `unavailable` collects stages that are skipped for the rest of the round."""
        work, unreported = record.held_work(), record.unreported_stages()
        if unreported and now < work.expires_at + _USAGE_RECORDED_WITHIN:
            return False
        spent = {item.event_id: item for item in work.spent}
        reported = []
        for stage in unreported:
            found = None if stage in unavailable else await self._spent(stage, record, unavailable)
            if found is not None:
                reported.append(stage)
                spent |= {item.event_id: item for item in found}
        if unreported and not reported:
            return False
        all_known = len(reported) == len(unreported)
        await self._store.mark_reported(
            record.upgrade_id, list(spent.values()), [*record.reported_stages, *reported], all_known=all_known
        )
        return all_known

    async def _spent(self, stage: Stage, record: AcceptedRecord, unavailable: set[Stage]) -> list[Spent] | None:
        try:
            return await self._stages.spent(stage, record.tenant_id, record.upgrade_id)
        except StageUnavailable as error:
            unavailable.add(stage)
            log.warning("stage_out", stage=stage.value, error=str(error))
        except StageUsageUnknown as error:
            log.warning("spending_not_told", stage=stage.value, upgrade_id=record.upgrade_id, error=str(error))
        return None
