"""Reads a topic without joining a consumer group: to its current end, or continuously."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from shared.contracts.topics import Topic
from shared.messaging.connection import make_consumer
from shared.messaging.settings import KafkaSettings

_FETCH_BYTES = 4 * 1024 * 1024
_POLL_MS = 200
_CONNECT_WITHIN_SECONDS = 15.0
_READ_WITHIN_SECONDS = 60.0


async def read_all(settings: KafkaSettings, topic: Topic) -> list[ConsumerRecord]:
    """Returns all records, by partition and offset. Raises KafkaError, OSError or TimeoutError."""
    consumer = await _started(settings)
    found: list[ConsumerRecord] = []
    try:
        async with asyncio.timeout(_READ_WITHIN_SECONDS):
            partitions = await _assign(consumer, topic)
            ends = await consumer.end_offsets(partitions)
            await consumer.seek_to_beginning(*partitions)
            while any([await consumer.position(partition) < end for partition, end in ends.items()]):
                for records in (await consumer.getmany(timeout_ms=_POLL_MS)).values():
                    found.extend(records)
    finally:
        await consumer.stop()
    return sorted(found, key=lambda record: (record.partition, record.offset))


async def read_uncommitted(settings: KafkaSettings, topic: Topic, group: str, most: int) -> list[ConsumerRecord]:
    """Returns up to `most` records from the committed offsets of `group` on.

    Raises KafkaError, OSError or TimeoutError.
    """
    consumer = await _started(settings)
    found: list[ConsumerRecord] = []
    try:
        async with asyncio.timeout(_READ_WITHIN_SECONDS):
            partitions = await _assign(consumer, topic)
            ends = await consumer.end_offsets(partitions)
            begins = await consumer.beginning_offsets(partitions)
            committed = await _committed(settings, group, partitions)
            for partition in partitions:
                begin = max(committed[partition], begins[partition])
                # An offset that was committed for an earlier log may be beyond the end of this one.
                consumer.seek(partition, begins[partition] if begin > ends[partition] else begin)
            while len(found) < most and any([await consumer.position(at) < end for at, end in ends.items()]):
                for records in (await consumer.getmany(timeout_ms=_POLL_MS)).values():
                    found.extend(records)
    finally:
        await consumer.stop()
    return found[:most]


async def follow(
    settings: KafkaSettings, topic: Topic, *, from_beginning: bool
) -> AsyncGenerator[ConsumerRecord, None]:
    """Yields the records of a topic as they arrive, endlessly. Raises KafkaError, OSError or TimeoutError."""
    consumer = await _started(settings)
    try:
        async with asyncio.timeout(_READ_WITHIN_SECONDS):
            partitions = await _assign(consumer, topic)
            await (consumer.seek_to_beginning if from_beginning else consumer.seek_to_end)(*partitions)
        while True:
            for records in (await consumer.getmany(timeout_ms=_POLL_MS)).values():
                for record in records:
                    yield record
    finally:
        await consumer.stop()


async def _committed(
    settings: KafkaSettings, group: str, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, int]:
    """The offsets that the group has committed. A consumer reads them, since not all brokers support the admin call."""
    consumer = make_consumer(settings, group_id=group)
    try:
        # Once and before the start: aiokafka's coordinator fails on a second assignment.
        consumer.assign(partitions)
        async with asyncio.timeout(_CONNECT_WITHIN_SECONDS):
            await consumer.start()
            return {partition: await consumer.committed(partition) or 0 for partition in partitions}
    finally:
        await consumer.stop()


async def _started(settings: KafkaSettings) -> AIOKafkaConsumer:
    consumer = make_consumer(settings, max_partition_fetch_bytes=_FETCH_BYTES)
    try:
        async with asyncio.timeout(_CONNECT_WITHIN_SECONDS):
            await consumer.start()
    except BaseException:
        await consumer.stop()
        raise
    return consumer


async def _assign(consumer: AIOKafkaConsumer, topic: Topic) -> list[TopicPartition]:
    """Assigns all partitions of the topic, as the broker lists them or else as the registry does."""
    consumer.assign([TopicPartition(topic.name, number) for number in range(topic.partitions)])
    await consumer.topics()
    numbers = consumer.partitions_for_topic(topic.name) or set(range(topic.partitions))
    partitions = [TopicPartition(topic.name, number) for number in sorted(numbers)]
    consumer.assign(partitions)
    return partitions
