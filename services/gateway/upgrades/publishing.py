"""Publishes accepted upgrades to the first inbox of their itinerary, and again to a Kafka cluster that lacks them."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from datetime import timedelta

from services.gateway.upgrades.accepted_record import AcceptedRecord
from services.gateway.upgrades.accepted_store import AcceptedStore
from services.gateway.upgrades.record_marks import RecordMarks
from shared.contracts.contract import derived_id, format_utc, now_utc
from shared.contracts.topics import INBOX_OF, REWRITE, Topic
from shared.contracts.upgrade_tasks import GivenUp, GiveUpReason, RewriteTask, Stage, UpgradeTask
from shared.messaging.errors import MessageTooLarge, PublishFailed
from shared.messaging.publish.producer import EventProducer
from shared.observability.logs import get_logger

_MAX_AT_ONCE = 1_000
_SWEPT_AT_ONCE = 64
_SWEEP_BATCH = 200
_SWEPT_AFTER = timedelta(seconds=5)
_RECONNECT_SECONDS = 1.0

log = get_logger(__name__)


class BrokerConnection:
    """Component: connects the producer in the background, so that the gateway accepts upgrades without a broker."""

    def __init__(self, producer: EventProducer) -> None:
        self._producer = producer
        self._connecting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._connecting = asyncio.create_task(self._connect(), name="broker-connection")

    async def stop(self, grace_seconds: float) -> None:
        if self._connecting:
            self._connecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._connecting
        await self._producer.stop(grace_seconds)

    async def _connect(self) -> None:
        while True:
            try:
                return await self._producer.start()
            except PublishFailed as error:
                log.warning("broker_not_reached", error=str(error))
            await asyncio.sleep(_RECONNECT_SECONDS)


class TaskPublisher:
    """Publishes the messages of accepted upgrades. Component: `stop` waits for messages that are being sent.

    `cluster_id` returns the id of the current Kafka cluster, None while that is unknown.
    """

    def __init__(self, producer: EventProducer, marks: RecordMarks, cluster_id: Callable[[], str | None]) -> None:
        self._producer = producer
        self._marks = marks
        self._cluster_id = cluster_id
        self._publishing: dict[str, asyncio.Task[bool]] = {}

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        if self._publishing:
            await asyncio.wait(list(self._publishing.values()), timeout=grace_seconds)

    def publish_soon(self, record: AcceptedRecord, first: Stage) -> None:
        """Publishes in the background; the client need not wait for the broker, since the upgrade is recorded."""
        upgrade_id = record.upgrade_id
        if len(self._publishing) >= _MAX_AT_ONCE:
            log.warning("publish_left_to_sweep", upgrade_id=upgrade_id)
            return
        self._publishing[upgrade_id] = asyncio.create_task(self._publish(record, first))
        self._publishing[upgrade_id].add_done_callback(lambda _: self._publishing.pop(upgrade_id, None))

    async def publish_again(self, records: Iterable[AcceptedRecord]) -> int:
        """Publishes records from the start of their itinerary; returns how many the broker confirmed.

        Stops after a batch without any confirmation.
        """
        left = [record for record in records if record.upgrade_id not in self._publishing]
        confirmed = 0
        for start in range(0, len(left), _SWEPT_AT_ONCE):
            some = left[start : start + _SWEPT_AT_ONCE]
            done = await asyncio.gather(*(self._publish(record, record.first_stage()) for record in some))
            confirmed += sum(done)
            if not any(done):
                break
        return confirmed

    async def publish_expired(self, record: AcceptedRecord) -> bool:
        """Sends an upgrade past its deadline to the upgrader, which ends it. Returns whether the broker confirmed."""
        task = RewriteTask.model_validate_json(record.task).model_copy(
            update={
                "itinerary": [Stage.UPGRADER],
                "conversation_history": [],  # not needed for the end, and a small message always fits
                "given_up": GivenUp(
                    stage="gateway", reason=GiveUpReason.EXPIRED, detail="The upgrade was not ended by its deadline."
                ),
            }
        )
        event_id = derived_id(record.upgrade_id, "expired", str(record.expiries))
        return await self._send(REWRITE, record, task, event_id)

    async def _publish(self, record: AcceptedRecord, first: Stage) -> bool:
        # Read before sending: if the cluster is replaced meanwhile, the message counts as not published.
        cluster_id = self._cluster_id()
        topic = INBOX_OF[first]
        event_id = derived_id(record.upgrade_id, "inbox", topic.name)
        sent = await self._send(topic, record, record.task.encode(), event_id)
        if sent and cluster_id is not None:
            self._marks.published(record.upgrade_id, cluster_id)
        return sent

    async def _send(self, topic: Topic, record: AcceptedRecord, task: UpgradeTask | bytes, event_id: str) -> bool:
        upgrade_id = record.upgrade_id
        try:
            await self._producer.publish(
                topic, upgrade_id, task, event_id=event_id, subject=upgrade_id, traceparent=record.traceparent
            )
        except (PublishFailed, MessageTooLarge) as error:
            log.warning("upgrade_not_published", upgrade_id=upgrade_id, topic=topic.name, error=str(error))
            return False
        return True


class PublishingSweep:
    """Publishes open records whose message the current Kafka cluster has not confirmed.

    After the log was lost, the new cluster has another id, so this publishes all open upgrades again. Repeating is
    harmless: stages answer a repeated message from their recorded output.
    """

    def __init__(
        self,
        store: AcceptedStore,
        publisher: TaskPublisher,
        marks: RecordMarks,
        cluster_id: Callable[[], str | None],
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._marks = marks
        self._cluster_id = cluster_id

    async def run(self) -> int:
        """Runs one round; returns how many messages were confirmed. Raises StorageUnavailable."""
        cluster_id = self._cluster_id()
        if cluster_id is None:
            return 0
        await self._marks.flush()
        accepted_before = format_utc(now_utc() - _SWEPT_AFTER)
        after, confirmed = "", 0
        while records := await self._store.unpublished(cluster_id, accepted_before, after, _SWEEP_BATCH):
            again = await self._publisher.publish_again(records)
            confirmed += again
            if not again:
                break
            after = records[-1].upgrade_id
        return confirmed
