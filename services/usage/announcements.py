"""Announces thresholds through an outbox: recorded with the event that is owed, then published until it is out."""

from collections.abc import Sequence

from shared.contracts.ids import derived_id
from shared.contracts.quota_events import QuotaThresholdReached
from shared.contracts.topics import QUOTA_THRESHOLD_REACHED
from shared.messaging.errors import Transient
from shared.messaging.outbox import Fact, FactOutbox, outbox_collection
from shared.messaging.producer import EventProducer
from shared.storage.documents import Database, StorageUnavailable

ANNOUNCED = outbox_collection("quota_thresholds")


class OutboxAnnouncements:
    """`Announcements` of `thresholds`, and the component that publishes them. Make it before the database starts.

    Nothing is published here: the sweep does it within seconds, so that a slow broker never holds up the counting.
    """

    def __init__(self, database: Database, producer: EventProducer) -> None:
        self._outbox = FactOutbox(database.collection(ANNOUNCED), producer, _NothingCounted())

    async def start(self) -> None:
        await self._outbox.start()

    async def stop(self, grace_seconds: float) -> None:
        await self._outbox.stop(grace_seconds)

    async def announce(self, announcement_id: str, reached: QuotaThresholdReached) -> None:
        """Records the event under its id if there is none. Raises StorageUnavailable."""
        event_id = derived_id("quota-threshold", announcement_id)
        fact = Fact(QUOTA_THRESHOLD_REACHED, reached.tenant_id, event_id, reached)
        try:
            await self._outbox.record(announcement_id, reached.tenant_id, {}, [fact])
        except Transient as error:
            raise StorageUnavailable(str(error)) from error

    async def publish_due(self) -> None:
        """One round of the sweep, now."""
        await self._outbox.sweep_all()


class _NothingCounted:
    """The outbox asks the ledger about facts that the ledger counts; thresholds are none."""

    async def missing(self, event_ids: Sequence[str]) -> set[str]:
        return set(event_ids)
