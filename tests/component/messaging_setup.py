"""Shared set-up of the messaging tests: own topics, broker settings, and a fake telemetry."""

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from shared.contracts.contract import Contract, Timestamp
from shared.contracts.topics import Topic, TopicKind, dead_letter_topic
from shared.contracts.upgrade_tasks import GivenUp
from shared.messaging.cloudevents import Envelope
from shared.messaging.connection import make_consumer
from shared.messaging.consume.stage_runner import StageRunner
from shared.messaging.publish.producer import EventProducer
from shared.messaging.settings import KafkaSettings
from shared.messaging.topics import create_topics

EMBEDDED: dict[str, object] = {"kafka_enable_idempotence": False, "kafka_session_timeout_ms": 2000}
"""Settings for the embedded broker, where joining a group takes half a session time-out."""

OTHER_BROKERS: dict[str, dict[str, object]] = {}
"""Settings for other brokers, by address."""


class Parcel(Contract):
    """A message without a deadline."""

    number: int
    text: str = ""


class TimedParcel(Parcel):
    """A message with a deadline."""

    deadline: Timestamp


@dataclass
class Ended:
    """A fake telemetry that records the reasons of fatal errors."""

    reasons: list[str] = field(default_factory=list)

    def fatal(self, message: str) -> None:
        self.reasons.append(message)


def own_topic(model: type[Contract] = Parcel, *, partitions: int = 4, max_message_bytes: int = 64 * 1024) -> Topic:
    """A topic that no other test uses."""
    return Topic(
        name=f"parcels.{uuid.uuid4().hex[:12]}.v1",
        kind=TopicKind.INBOX,
        model=model,
        owner="upgrader",
        producers=("gateway",),
        consumers=("upgrader",),
        key="number",
        partitions=partitions,
        max_message_bytes=max_message_bytes,
    )


def settings_for(bootstrap: str, **changes: object) -> KafkaSettings:
    values = {"kafka_bootstrap_servers": bootstrap} | OTHER_BROKERS.get(bootstrap, EMBEDDED) | changes
    return KafkaSettings(_env_file=None, **values)  # type: ignore[arg-type]


async def created(settings: KafkaSettings, topic: Topic) -> Topic:
    await create_topics(settings, (topic, dead_letter_topic(topic)))
    return topic


async def started_producer(settings: KafkaSettings) -> EventProducer:
    producer = EventProducer(settings, source="tests")
    await producer.start()
    return producer


async def send(producer: EventProducer, topic: Topic, numbers: range, **fields: object) -> None:
    assert topic.model is not None
    for number in numbers:
        await producer.publish(topic, str(number), topic.model.model_validate({"number": number, **fields}))


def stage(
    settings: KafkaSettings,
    topic: Topic,
    producer: EventProducer,
    handler: Callable[[Envelope], Awaitable[None]],
    *,
    give_up: Callable[[Envelope, GivenUp], Awaitable[None]] | None = None,
    telemetry: Ended | None = None,
    concurrency: int | None = None,
    group: str | None = None,
) -> StageRunner:
    return StageRunner(
        settings=settings,
        topic=topic,
        group=group or f"tests.{topic.name}",
        handler=handler,
        give_up=give_up,
        producer=producer,
        telemetry=telemetry or Ended(),
        concurrency=concurrency,
    )


def number_of(envelope: Envelope) -> int:
    assert isinstance(envelope.data, Parcel)
    return envelope.data.number


async def committed(settings: KafkaSettings, topic: Topic, group: str | None = None) -> int:
    """The sum of the offsets that a group has committed on a topic."""
    consumer: AIOKafkaConsumer = make_consumer(settings, group_id=group or f"tests.{topic.name}")
    await consumer.start()
    try:
        partitions = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
        consumer.assign(partitions)
        return sum([await consumer.committed(partition) or 0 for partition in partitions])
    finally:
        await consumer.stop()


async def records_of(settings: KafkaSettings, topic: Topic) -> list[ConsumerRecord]:
    """All records of a topic."""
    consumer: AIOKafkaConsumer = make_consumer(settings, max_partition_fetch_bytes=8 << 20)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        found: list[ConsumerRecord] = []
        while len(found) < sum(ends.values()):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found.extend(records)
        return found
    finally:
        await consumer.stop()
