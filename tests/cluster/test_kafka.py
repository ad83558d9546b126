"""Apache Kafka as the cluster runs it: our topics as the registry says, and a log that survives a restart."""

import asyncio
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from deploy.local import servers
from shared.contracts.topics import all_topics
from shared.messaging.settings import KafkaSettings
from shared.messaging.topic_admin import create_topics

pytestmark = pytest.mark.cluster

CONFIGS = ("retention.ms", "max.message.bytes")


def settings_for(address: str) -> KafkaSettings:
    return KafkaSettings(kafka_bootstrap_servers=address, _env_file=None)


async def test_the_topics_of_the_registry_are_created_as_it_says(apache_kafka: str) -> None:
    await create_topics(settings_for(apache_kafka))
    await create_topics(settings_for(apache_kafka))
    admin = AIOKafkaAdminClient(bootstrap_servers=apache_kafka)
    await admin.start()
    try:
        described = {topic["topic"]: topic for topic in await admin.describe_topics()}
        resources = [ConfigResource(ConfigResourceType.TOPIC, topic.name) for topic in all_topics()]
        answers = await admin.describe_configs(resources)
    finally:
        await admin.close()
    configs = {name: entries for answer in answers for _, _, _, name, entries in answer.resources}
    for topic in all_topics():
        assert len(described[topic.name]["partitions"]) == topic.partitions
        values = {name: value for name, value, *_ in configs[topic.name]}
        assert [values[name] for name in CONFIGS] == [str(topic.retention_ms), str(topic.max_message_bytes)]


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
    async with await servers.start_kafka(None, tmp_path / "kafka", cluster_libs) as kafka:
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
