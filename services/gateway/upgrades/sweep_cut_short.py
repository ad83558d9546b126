"""Finds out what upgrades have spent that were ended while a stage may have been at work."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Protocol

from services.gateway.admission.held_work import Spent
from services.gateway.upgrades.accepted_record import AcceptedRecord
from services.gateway.upgrades.accepted_store import AcceptedStore
from shared.contracts.contract import now_utc
from shared.contracts.upgrade_tasks import Stage
from shared.observability.logs import get_logger

RECORDED_WITHIN = timedelta(seconds=15)
"""What a stage has spent at the last moment is recorded by then."""
_BATCH = 200

log = get_logger(__name__)


class StagesUnavailable(Exception):
    """A stage did not answer; ask again later."""


class StageSpending(Protocol):
    async def spent(self, stage: Stage, tenant_id: str, upgrade_id: str) -> list[Spent]:
        """What the stage has recorded for the ledger. Raises StagesUnavailable."""


class CutShortSweep:
    """Its hold stays at the worst case until all its stages have answered, however long that takes."""

    def __init__(self, store: AcceptedStore, stages: StageSpending, clock: Callable[[], datetime] = now_utc) -> None:
        self._store = store
        self._stages = stages
        self._clock = clock

    async def run(self) -> int:
        """One round; gives of how many everything is known now. Raises StorageUnavailable."""
        after, asked, out = "", 0, set[Stage]()
        while records := await self._store.cut_short(after, _BATCH):
            after = records[-1].upgrade_id
            for record in records:
                asked += await self._ask(record, out)
        return asked

    async def _ask(self, record: AcceptedRecord, out: set[Stage]) -> bool:
        """`out` are the stages that do not answer in this round."""
        work = record.held_work()
        # The upgrader has ended it: what it has spent is in its end.
        stages = [stage for stage in record.stages() if stage is not Stage.UPGRADER]
        if self._clock() < work.expires_at + RECORDED_WITHIN or not out.isdisjoint(stages):
            return False
        spent = {item.event_id: item for item in work.spent}
        for stage in stages:
            try:
                found = await self._stages.spent(stage, record.tenant_id, record.upgrade_id)
            except StagesUnavailable as error:
                log.warning("spending_not_known_yet", stage=stage.value, error=str(error))
                out.add(stage)
                return False
            spent |= {item.event_id: item for item in found}
        await self._store.mark_asked(record.upgrade_id, list(spent.values()))
        return True
