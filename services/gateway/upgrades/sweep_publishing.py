"""Publishes again what the log does not have: messages that were never confirmed, and all open ones when it is new."""

from collections.abc import Callable
from datetime import timedelta

from services.gateway.upgrades.accepted_store import AcceptedStore
from services.gateway.upgrades.publishing import TaskPublisher
from services.gateway.upgrades.record_marks import RecordMarks
from shared.contracts.contract import format_utc, now_utc

PUBLISHED_WITHIN = timedelta(seconds=5)
_BATCH = 200


class PublishingSweep:
    """An open record names the log (cluster id) that confirmed its message; any other log has to get it again.

    Repeating is harmless: stages answer a repeated message from their recorded output.
    """

    def __init__(
        self,
        store: AcceptedStore,
        publisher: TaskPublisher,
        marks: RecordMarks,
        cluster_id: Callable[[], str | None],
        patience: timedelta = PUBLISHED_WITHIN,
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._marks = marks
        self._cluster_id = cluster_id
        self._patience = patience

    async def run(self) -> int:
        """One round; gives how many messages were confirmed. Raises StorageUnavailable."""
        cluster_id = self._cluster_id()
        if cluster_id is None:
            return 0
        await self._marks.flush()
        accepted_before = format_utc(now_utc() - self._patience)
        after, confirmed = "", 0
        while records := await self._store.unpublished(cluster_id, accepted_before, after, _BATCH):
            again = await self._publisher.publish_again(records)
            confirmed += again
            if not again:
                break
            after = records[-1].upgrade_id
        return confirmed
