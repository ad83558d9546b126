"""Collects which upgrades were published and which have ended, and writes that to their records in batches."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from cachetools import LRUCache

from services.gateway.quota.held_work import EndedUpgrade
from services.gateway.upgrades.accepted_store import AcceptedStore
from shared.contracts.upgrade_results import UpgradeResult, UpgradeStatus
from shared.observability.logs import get_logger
from shared.observability.metrics import UPGRADE_ERRORS, UPGRADE_LATENCY
from shared.storage.documents import StorageUnavailable

_MAX_MARKS = 50_000
_REMEMBERED_ENDS = 20_000
_BATCH = 500

ValueT = TypeVar("ValueT")
Settle = Callable[[Sequence[EndedUpgrade]], Awaitable[None]]

log = get_logger(__name__)


class RecordMarks:
    """Collects marks until `flush`. Component. The sweeps find again what is lost when a process crashes.

    `on_end` is called once per ended upgrade, `settle` with the ended upgrades of each batch after they are stored.
    """

    def __init__(self, store: AcceptedStore, on_end: Callable[[UpgradeResult], None], settle: Settle) -> None:
        self._store = store
        self._on_end = on_end
        self._settle = settle
        self._published: dict[str, str] = {}
        self._ended: dict[str, EndedUpgrade] = {}
        self._seen_ends: LRUCache[str, None] = LRUCache(_REMEMBERED_ENDS)

    def published(self, upgrade_id: str, cluster_id: str) -> None:
        """Marks the message of the upgrade as confirmed by that Kafka cluster."""
        if upgrade_id not in self._seen_ends and len(self._published) < _MAX_MARKS:
            self._published[upgrade_id] = cluster_id

    def ended(self, result: UpgradeResult) -> None:
        """Marks the upgrade as ended. A repeated call for the same upgrade is harmless."""
        self._published.pop(result.upgrade_id, None)
        if len(self._ended) < _MAX_MARKS:
            self._ended[result.upgrade_id] = EndedUpgrade.of(result)
        if result.upgrade_id not in self._seen_ends:
            self._seen_ends[result.upgrade_id] = None
            self._on_end(result)

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        """Writes the remaining marks. If that fails, the sweeps of another process find them."""
        try:
            await self.flush()
        except StorageUnavailable:
            log.warning("marks_not_written", published=len(self._published), ended=len(self._ended))

    async def flush(self) -> None:
        """Writes the marks. Raises StorageUnavailable, and keeps those that were not written."""
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
            # After the record: from the record alone, the settlement sweep can do this too.
            await self._settle([ended[upgrade_id] for upgrade_id in batch])
            for upgrade_id in batch:
                _forget(self._ended, [upgrade_id], ended[upgrade_id])


def count_end(result: UpgradeResult) -> None:
    """Observes the metrics of an ended upgrade."""
    UPGRADE_LATENCY.labels(status=result.status.value).observe(result.latency_ms / 1000)
    if result.status in (UpgradeStatus.ORIGINAL, UpgradeStatus.FAILED):
        UPGRADE_ERRORS.labels(error_type=result.error.code if result.error else result.status.value).inc()


def _forget(marks: dict[str, ValueT], ids: list[str], value: ValueT) -> None:
    """Removes written marks, unless they have changed meanwhile."""
    for upgrade_id in ids:
        if marks.get(upgrade_id) == value:
            del marks[upgrade_id]
