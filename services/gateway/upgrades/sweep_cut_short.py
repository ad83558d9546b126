"""Finds out what upgrades have spent that were ended while a stage may have been at work."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Protocol

from services.gateway.admission.held_work import Spent
from services.gateway.upgrades.accepted_record import AcceptedRecord
from services.gateway.upgrades.accepted_store import AcceptedStore
from shared.contracts.upgrade_tasks import Stage
from shared.observability.logs import get_logger

RECORDED_WITHIN = timedelta(seconds=15)
"""What a stage has spent at the last moment is recorded by then."""
_BATCH = 200

log = get_logger(__name__)


class StageOut(Exception):
    """A stage does not answer."""


class SpendingNotTold(Exception):
    """A stage answers, but not to this question."""


class StageSpending(Protocol):
    async def spent(self, stage: Stage, tenant_id: str, upgrade_id: str) -> list[Spent]:
        """What the stage has recorded for the ledger. Raises StageOut and SpendingNotTold."""


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
