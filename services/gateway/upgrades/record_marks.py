"""Marks on accepted records (published, ended), written in batches."""

from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from services.gateway.quota.held_work import EndedWork
from services.gateway.upgrades.accepted_store import AcceptedStore
from shared.contracts.upgrade_results import UpgradeResult, UpgradeStatus
from shared.observability.logs import get_logger
from shared.observability.metrics import UPGRADE_ERRORS, UPGRADE_LATENCY
from shared.storage.documents import StorageUnavailable


def count_end(result: UpgradeResult) -> None:
    """Notes the latency of an ended upgrade, and why it was not upgraded if it was not."""
    UPGRADE_LATENCY.labels(status=result.status.value).observe(result.latency_ms / 1000)
    if result.status in (UpgradeStatus.ORIGINAL, UpgradeStatus.FAILED):
        UPGRADE_ERRORS.labels(error_type=result.error.code if result.error else result.status.value).inc()


_MOST_NOTES = 50_000
_REMEMBERED_ENDS = 20_000
_BATCH = 500

ValueT = TypeVar("ValueT")
Settle = Callable[[Sequence[EndedWork]], Awaitable[None]]

log = get_logger(__name__)


class RecordMarks:
    """Collects notes until `flush`. A note that is lost, with its process say, is found out again by the sweeps."""

    def __init__(
        self, store: AcceptedStore, on_end: Callable[[UpgradeResult], None], settle: Settle | None = None
    ) -> None:
        self._store = store
        self._on_end = on_end
        self._settle = settle
        self._published: dict[str, str] = {}
        self._ended: dict[str, EndedWork] = {}
        self._seen: OrderedDict[str, None] = OrderedDict()

    def published(self, upgrade_id: str, cluster_id: str) -> None:
        """The log `cluster_id` has confirmed the message of this upgrade."""
        if upgrade_id not in self._seen and len(self._published) < _MOST_NOTES:
            self._published[upgrade_id] = cluster_id

    def ended(self, result: UpgradeResult) -> None:
        """The upgrade has ended; `on_end` is told the first time this process learns of it."""
        self._published.pop(result.upgrade_id, None)
        if len(self._ended) < _MOST_NOTES:
            self._ended[result.upgrade_id] = EndedWork.of(result)
        if result.upgrade_id not in self._seen:
            self._seen[result.upgrade_id] = None
            if len(self._seen) > _REMEMBERED_ENDS:
                self._seen.popitem(last=False)
            self._on_end(result)

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        """Writes what is left; without success the sweeps of the next process find it."""
        try:
            await self.flush()
        except StorageUnavailable:
            log.warning("marks_not_written", published=len(self._published), ended=len(self._ended))

    async def flush(self) -> None:
        """Writes the notes. Raises StorageUnavailable, and keeps what was not written."""
        by_cluster: defaultdict[str, list[str]] = defaultdict(list)
        for upgrade_id, cluster_id in self._published.items():
            by_cluster[cluster_id].append(upgrade_id)
        for cluster_id, ids in by_cluster.items():
            for start in range(0, len(ids), _BATCH):
                batch = ids[start : start + _BATCH]
                await self._store.mark_published(batch, cluster_id)
                _forget(self._published, batch, cluster_id)
        ended = dict(self._ended)
        for start in range(0, len(ended), _BATCH):
            batch = list(ended)[start : start + _BATCH]
            await self._store.mark_ended([ended[upgrade_id] for upgrade_id in batch])
            if self._settle is not None:
                # After the record: should this process end in between, the record alone is enough to go by.
                await self._settle([ended[upgrade_id] for upgrade_id in batch])
            for upgrade_id in batch:
                _forget(self._ended, [upgrade_id], ended[upgrade_id])


def _forget(notes: dict[str, ValueT], ids: list[str], value: ValueT) -> None:
    """Drops notes that were written, unless they have changed since."""
    for upgrade_id in ids:
        if notes.get(upgrade_id) == value:
            del notes[upgrade_id]
