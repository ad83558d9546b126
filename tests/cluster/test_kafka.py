"""Apache Kafka as the cluster runs it: our topics as the registry says, and a log that survives a restart."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from deploy.local import servers
from shared.contracts.topics import DAY_MS, Topic, all_topics
from shared.messaging.cloudevents import Envelope
from shared.messaging.consume.stage_runner import StageRunner
from shared.messaging.settings import KafkaSettings
from shared.messaging.topics import create_topics
from tests.component.messaging_setup import Ended, created, number_of, own_topic, send, stage, started_producer
from tests.conftest import eventually

pytestmark = pytest.mark.cluster

CONFIGS = ("retention.ms", "segment.ms", "max.message.bytes")


def settings_for(address: str) -> KafkaSettings:
    return KafkaSettings(kafka_bootstrap_servers=address, _env_file=None)


@contextlib.asynccontextmanager
async def admin_of(address: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def configs_of(admin: AIOKafkaAdminClient, topics: Sequence[Topic]) -> dict[str, dict[str, str]]:
    """By topic, every setting of it with its value."""
    answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic.name) for topic in topics])
    resources = [resource for answer in answers for resource in answer.resources]
    return {name: {entry[0]: entry[1] for entry in entries} for _, _, _, name, entries in resources}


async def test_the_topics_of_the_registry_are_created_as_it_says(apache_kafka: str) -> None:
    await create_topics(settings_for(apache_kafka))
    await create_topics(settings_for(apache_kafka))
    async with admin_of(apache_kafka) as admin:
        described = {topic["topic"]: topic for topic in await admin.describe_topics()}
        configs = await configs_of(admin, all_topics())
    for topic in all_topics():
        assert len(described[topic.name]["partitions"]) == topic.partitions
        expected = [topic.retention_ms, topic.segment_ms, topic.max_message_bytes]
        assert [configs[topic.name][name] for name in CONFIGS] == [str(value) for value in expected]


async def test_a_topic_from_before_gets_what_the_registry_says_now(apache_kafka: str) -> None:
    topic = own_topic()
    settings = settings_for(apache_kafka)
    async with admin_of(apache_kafka) as admin:
        before = {"retention.ms": str(30 * DAY_MS), "max.message.bytes": "2048", "compression.type": "gzip"}
        await admin.create_topics([NewTopic(topic.name, topic.partitions, 1, topic_configs=before)])
        await asyncio.gather(*(create_topics(settings, [topic]) for _ in range(3)))
        configs = await eventually(lambda: _corrected(admin, topic)) or {}
    assert configs["max.message.bytes"] == str(topic.max_message_bytes)
    assert configs["segment.ms"] == str(topic.segment_ms)
    assert configs["compression.type"] == "gzip"  # what an operator has set stays


async def _corrected(admin: AIOKafkaAdminClient, topic: Topic) -> dict[str, str] | None:
    configs = (await configs_of(admin, [topic]))[topic.name]
    return configs if configs["retention.ms"] == str(topic.retention_ms) else None


async def test_a_group_that_was_away_for_longer_than_its_topic_is_kept_goes_on(apache_kafka: str) -> None:
    settings = settings_for(apache_kafka).model_copy(update={"stage_stall_seconds": 1})
    topic, handled, telemetry = await created(settings, own_topic(partitions=1)), list[int](), Ended()
    producer = await started_producer(settings)

    async def handle(envelope: Envelope) -> None:
        handled.append(number_of(envelope))

    async def handles(numbers: range) -> None:
        runner = stage(settings, topic, producer, handle, telemetry=telemetry)
        await runner.start()
        try:
            await send(producer, topic, numbers)
            await eventually(lambda: _are(handled, numbers), timeout=30)
        finally:
            await runner.stop(5)

    await handles(range(3))
    await send(producer, topic, range(3, 6))
    async with admin_of(apache_kafka) as admin:
        whole = TopicPartition(topic.name, 0)
        await admin.delete_records({whole: RecordsToDelete(6)})
    runner = stage(settings, topic, producer, handle, telemetry=telemetry)
    await runner.start()
    # Nothing is there to read, which is no reason to take the reader for one that hangs.
    await eventually(lambda: _has_caught_up(runner), timeout=30)
    await runner.stop(5)
    await handles(range(6, 9))
    assert handled == [0, 1, 2, 6, 7, 8]
    assert telemetry.reasons == []
    await producer.stop(1)


async def _are(handled: list[int], numbers: range) -> bool:
    return handled[-len(numbers) :] == list(numbers)


async def _has_caught_up(runner: StageRunner) -> bool:
    reader = runner._reader
    return reader.joined and bool(reader.partitions) and not await reader.records_waiting(5)


async def test_no_topic_comes_into_being_by_accident(apache_kafka: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=apache_kafka, request_timeout_ms=2000)
    await producer.start()
    try:
        with pytest.raises((KafkaError, TimeoutError)):
            await asyncio.wait_for(producer.send_and_wait("never-declared", b"x"), 5.0)
    finally:
        await producer.stop()


async def test_a_restart_keeps_the_log_and_the_committed_offsets(cluster_libs: Path, tmp_path: Path) -> None:
    topic = all_topics()[0].name
    async with await servers.start_kafka(tmp_path / "kafka", cluster_libs) as kafka:
        await create_topics(settings_for(kafka.url))
        producer = AIOKafkaProducer(bootstrap_servers=kafka.url, enable_idempotence=True, acks="all")
        await producer.start()
        for n in range(10):
            await producer.send_and_wait(topic, b"%d" % n, partition=0)
        await producer.stop()
        assert await _read_and_commit(kafka.url, topic, count=4) == [b"0", b"1", b"2", b"3"]
        await kafka.stop()
        await kafka.start()
        assert await _read_and_commit(kafka.url, topic, count=6) == [b"4", b"5", b"6", b"7", b"8", b"9"]


async def _read_and_commit(address: str, topic: str, count: int) -> list[bytes | None]:
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=address,
        group_id="team.test.restart",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_poll_records=1,
    )
    await consumer.start()
    try:
        async with asyncio.timeout(30.0):
            values = [(await consumer.getone()).value for _ in range(count)]
        await consumer.commit()
    finally:
        await consumer.stop()
    return values
