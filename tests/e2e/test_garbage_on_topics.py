"""Unreadable records on a topic are dead-lettered, and the partition continues."""

import time

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from shared.contracts.token_bounds import RECENT_MESSAGES
from shared.contracts.topics import COMPLETED, REWRITE, SUMMARIZE, USAGE_RECORDED, Topic
from tests.running_stack import RunningStack

pytestmark = pytest.mark.xdist_group("offline stack")

GOOD_HEADERS = [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"test")]
GARBAGE: dict[str, tuple[bytes, list[tuple[str, bytes]]]] = {
    "not JSON": (b"\x00\xff not json", GOOD_HEADERS),
    "a schema of the future": (b'{"upgradeUuid": {"v2": true}}', GOOD_HEADERS),
    "a missing header": (b"{}", [("ce_specversion", b"1.0")]),
    "five megabytes": (b"x" * 5_000_000, GOOD_HEADERS),
}


@pytest.mark.parametrize("topic", [SUMMARIZE, REWRITE, USAGE_RECORDED, COMPLETED], ids=lambda topic: topic.name)
async def test_the_partition_continues(offline_stack: RunningStack, topic: Topic) -> None:
    servers = offline_stack.endpoints()["kafka"]
    producer = AIOKafkaProducer(bootstrap_servers=servers, max_request_size=8_000_000)
    await producer.start()
    for value, headers in GARBAGE.values():
        typed = headers if len(headers) < 3 else [*headers, ("ce_type", topic.name.encode())]
        for partition in range(topic.partitions):
            await producer.send_and_wait(topic.name, value, partition=partition, headers=typed)
    await producer.stop()

    async with offline_stack.client() as client:
        # Long enough to pass through the summarizer.
        history = [{"role": "user", "content": "Write about the sea."}] * (RECENT_MESSAGES + 1)
        body = {"userPrompt": "shorter", "conversationHistory": history}
        assert (await client.post("/api/upgrade", json=body)).json()["status"] == "upgraded"

    consumer = AIOKafkaConsumer(
        topic.dead_letter_name,
        bootstrap_servers=servers,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=8_000_000,
    )
    await consumer.start()
    letters: list[dict[str, bytes]] = []
    deadline = time.monotonic() + 20
    while len(letters) < len(GARBAGE) * topic.partitions:
        assert time.monotonic() < deadline, f"{len(letters)} dead letters"
        for records in (await consumer.getmany(timeout_ms=500)).values():
            letters += [dict(record.headers) for record in records]
    await consumer.stop()
    assert {letter["dlq_source_topic"] for letter in letters} == {topic.name.encode()}
    assert all(letter["dlq_error_class"] and letter["dlq_source_offset"] for letter in letters)
