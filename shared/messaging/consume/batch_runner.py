"""Runs a handler for batches of events, read through FastStream. A batch is committed once it is handled."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaMessage
from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512

from shared.contracts.topics import Topic, dead_letter_topic
from shared.messaging.cloudevents import Envelope
from shared.messaging.cluster_watch import ClusterWatch
from shared.messaging.connection import METADATA_MAX_AGE_MS, group_options, security_options
from shared.messaging.consume.batch_handling import BatchDropped, BatchHandling
from shared.messaging.consume.group_membership import (
    NO_GENERATION,
    REVOKE_WAIT_SECONDS,
    check_membership,
    commit_once,
    generation_of,
    rejoin,
)
from shared.messaging.consume.measuring import LagGauge
from shared.messaging.consume.stall_watch import EndsProcess, StallWatch
from shared.messaging.publish.producer import EventProducer
from shared.messaging.settings import KafkaSettings
from shared.messaging.topics import create_topics
from shared.observability.logs import get_logger
from shared.observability.metrics import STAGE_LATENCY

_COMMIT_WITHIN_SECONDS = 5.0
_START_WITHIN_SECONDS = 60.0
_STOP_WITHIN_SECONDS = 10.0
_CHECK_EVERY_SECONDS = 2.0
_PAUSE_AFTER_ERROR_SECONDS = 0.5
_DAY_MS = 24 * 3600 * 1000

log = get_logger(__name__)


class BatchRunner(ConsumerRebalanceListener):  # type: ignore[misc]
    """Calls `handler` with batches of up to `max_records` decoded events, one batch at a time. Component.

    - A batch is committed after the handler has returned, and delivered again after a crash before that.
    - Transient errors are retried with backoff until they pass, while heartbeats continue. After an Unprocessable
      error, or a third unknown one, the events are handled one by one, and those that fail are dead-lettered.
    - Undecodable records are dead-lettered at once. If a dead letter cannot be written, nothing is committed.
    """

    def __init__(
        self,
        *,
        settings: KafkaSettings,
        topics: Sequence[Topic],
        group: str,
        handler: Callable[[list[Envelope]], Awaitable[None]],
        producer: EventProducer,
        telemetry: EndsProcess,
        max_records: int = 500,
    ) -> None:
        self._settings = settings
        self._topics = tuple(topics)
        self._group = group
        self._telemetry = telemetry
        self._max_records = max_records
        self._handling = BatchHandling(topics, handler, producer, self._moved)
        self._cluster = ClusterWatch(settings, self._on_new_log)
        self._stall = StallWatch(self, self._cluster, settings.stage_stall_seconds)
        self._broker: KafkaBroker | None = None
        self._consumer_of: Callable[[], AIOKafkaConsumer | None] = lambda: None
        self._watching: asyncio.Task[None] | None = None
        self._assignment = 0
        self._generation = NO_GENERATION
        self._last_joined: float | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._lag = LagGauge()
        self._done: dict[TopicPartition, int] = {}

    async def start(self) -> None:
        """Connects and joins the group. Raises KafkaError, OSError or TimeoutError after 60 s."""
        await self._join(time.monotonic() + _START_WITHIN_SECONDS)
        await self._cluster.start()
        self._watching = asyncio.create_task(self._watch(), name=f"{self._group} watch")

    async def stop(self, grace_seconds: float) -> None:
        """Waits up to `grace_seconds` for the current batch, then leaves the group."""
        self._stopping = True
        await self._cluster.stop(grace_seconds)
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        await self._wait_idle(grace_seconds)
        await self._leave()

    async def check(self) -> None:
        """Readiness check: raises NotReading while it is not a member of its group."""
        check_membership(self.joined, self._last_joined, self._settings.stage_stall_seconds)

    @property
    def joined(self) -> bool:
        """Whether this is a member of the group's current generation."""
        consumer = self._consumer_of()
        if consumer is None or self._generation == NO_GENERATION:
            return False
        return generation_of(consumer) == self._generation

    async def records_waiting(self, within_seconds: float) -> bool:
        """Whether there are unread records. Raises KafkaError, OSError or TimeoutError."""
        consumer = self._consumer_of()
        if consumer is None or not self._idle.is_set():
            return False
        async with asyncio.timeout(within_seconds):
            ends = await consumer.end_offsets(list(consumer.assignment())) if consumer.assignment() else {}
            return any([ends[found] > await consumer.position(found) for found in ends])

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        consumer = self._consumer_of()
        self._generation = generation_of(consumer) if consumer is not None else NO_GENERATION
        self._last_joined = time.monotonic()
        log.info("partitions_assigned", group=self._group, partitions=len(assigned))

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Waits up to 1.5 s for the current batch, while the whole group waits; later it can not commit."""
        await self._wait_idle(REVOKE_WAIT_SECONDS)
        self._done.clear()
        self._assignment += 1
        self._generation = NO_GENERATION

    async def _join(self, deadline: float) -> None:
        while True:
            try:
                async with asyncio.timeout(_START_WITHIN_SECONDS):
                    self._broker = self._subscribed_broker()
                    await self._broker.start()
                return
            except (KafkaError, OSError, TimeoutError):
                await self._leave()
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_PAUSE_AFTER_ERROR_SECONDS)

    def _subscribed_broker(self) -> KafkaBroker:
        broker = make_broker(self._settings, graceful_timeout=0.1)
        subscriber = broker.subscriber(
            *(topic.name for topic in self._topics),
            batch=True,
            max_records=self._max_records,
            batch_timeout_ms=100,
            auto_offset_reset="earliest",
            ack_policy=AckPolicy.MANUAL,
            no_reply=True,
            # Handling has its own time-outs. A batch that waits for a store must not end the membership.
            max_poll_interval_ms=_DAY_MS,
            fetch_max_wait_ms=max(100, self._settings.kafka_fetch_max_wait_ms),
            listener=self,
            parser=self._parse,
            decoder=_leave_undecoded,
            **group_options(self._settings, self._group),
        )
        subscriber(self._on_batch)
        self._consumer_of = lambda: subscriber.consumer
        return broker

    async def _leave(self) -> None:
        self._assignment += 1
        self._generation = NO_GENERATION
        broker, self._broker = self._broker, None
        self._consumer_of = lambda: None
        if broker is not None:
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                await asyncio.wait_for(broker.stop(), _STOP_WITHIN_SECONDS)

    async def _on_new_log(self, old: str, new: str) -> None:
        """Rejoins, to read the new log from its beginning. The current batch does not commit."""
        self._assignment += 1
        self._generation = NO_GENERATION
        consumer = self._consumer_of()
        if consumer is not None:
            rejoin(consumer)
        await create_topics(self._settings, [*self._topics, *(dead_letter_topic(topic) for topic in self._topics)])

    async def _parse(self, records: tuple[ConsumerRecord, ...]) -> KafkaMessage:
        consumer: Any = self._consumer_of()
        return KafkaMessage(body=b"", headers={}, raw_message=records, consumer=consumer, message_id="", path={})

    async def _on_batch(self, message: KafkaMessage) -> None:
        """The subscriber. Must not raise: FastStream would continue with the next batch."""
        records: Any = message.raw_message
        assignment, generation, consumer = self._assignment, self._generation, self._consumer_of()
        if self._stopping or consumer is None:
            return
        self._idle.clear()
        self._moved()
        started = time.perf_counter()
        try:
            await self._handling.handle(records, lambda: self._assignment == assignment)
            await self._commit(consumer, generation, records)
        except BatchDropped:
            log.info("batch_dropped", group=self._group, records=len(records))
        except Exception as error:
            log.critical("batch_not_handled", group=self._group, exc_info=error)
            self._telemetry.fatal(f"{self._group}: {type(error).__name__} while handling a batch")
        finally:
            self._idle.set()
        STAGE_LATENCY.labels(topic=records[0].topic).observe(time.perf_counter() - started)

    async def _commit(self, consumer: AIOKafkaConsumer, generation: int, records: Sequence[ConsumerRecord]) -> None:
        # Offsets of a partition are in rising order, so the last record per partition determines the commit.
        offsets = {TopicPartition(record.topic, record.partition): record.offset + 1 for record in records}
        self._done.update(offsets)
        try:
            async with asyncio.timeout(_COMMIT_WITHIN_SECONDS):
                await commit_once(consumer, generation, offsets)
        except (KafkaError, OSError, TimeoutError) as error:
            # The next commit includes this batch. Without one, the batch is handled again.
            log.warning("offsets_not_committed", group=self._group, error=type(error).__name__)

    async def _wait_idle(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    def _moved(self) -> None:
        self._stall.moved()

    def _report_lag(self) -> None:
        consumer, lag = self._consumer_of(), dict[TopicPartition, int]()
        if consumer is not None and self.joined:
            for found in consumer.assignment():
                end, done = consumer.highwater(found), self._done.get(found)
                lag[found] = max(0, end - done) if end is not None and done is not None else 0
        self._lag.report(lag)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_EVERY_SECONDS)
            self._report_lag()
            reason = await self._stall.check()
            if reason is not None:
                self._telemetry.fatal(f"{self._group}: {reason}")


async def _leave_undecoded(message: KafkaMessage) -> bytes:
    return b""


def make_broker(settings: KafkaSettings, **options: Any) -> KafkaBroker:
    """A FastStream broker that only consumes, creates no topics and does not log."""
    return KafkaBroker(
        settings.kafka_bootstrap_servers,
        request_timeout_ms=settings.kafka_request_timeout_ms,
        metadata_max_age_ms=METADATA_MAX_AGE_MS,
        security=_security(settings),
        consumer_only=True,
        allow_auto_create_topics=False,
        logger=None,
        **options,
    )


def _security(settings: KafkaSettings) -> BaseSecurity | None:
    """The client's security options as FastStream represents them."""
    options = security_options(settings)
    protocol, context = options["security_protocol"], options.get("ssl_context")
    if protocol == "PLAINTEXT":
        return None
    if protocol == "SSL":
        return BaseSecurity(ssl_context=context)
    kinds = {"PLAIN": SASLPlaintext, "SCRAM-SHA-256": SASLScram256, "SCRAM-SHA-512": SASLScram512}
    return kinds[options["sasl_mechanism"]](
        username=options["sasl_plain_username"], password=options["sasl_plain_password"], ssl_context=context
    )
