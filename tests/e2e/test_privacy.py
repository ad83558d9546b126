"""Personal values and secrets are in no topic, file or model call, and are restored in the answer."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from shared.contracts.token_bounds import RECENT_MESSAGES
from shared.contracts.topics import all_topics
from tests.model_server import ModelServer
from tests.model_server import module_model as module_model
from tests.running_stack import RunningStack

pytestmark = pytest.mark.xdist_group("scripted stack")

MAIL = "maria.lindqvist@northwind-traders.example"
CARD = "4111 1111 1111 1111"
SECRET = "sk-proj-Zk3vQ9xT7bLm2Rw8Yc5Nd1Hf6Jg4Ps0A"
PHONE = "+49 30 901820"
VALUES = (MAIL, CARD, SECRET, PHONE)
PROMPT = f"Write a mail to {MAIL} that card {CARD} was declined"
HISTORY = [
    {"role": "user", "content": f"Our API key is {SECRET}, keep it for later. Call us at {PHONE}."},
    {"role": "assistant", "content": "Noted."},
    *[{"role": "user", "content": "Wait a moment, please."}] * (RECENT_MESSAGES - 1),
]
"""One message more than the rewriter reads itself: the summarizer reads the first ones."""


@pytest.fixture(scope="module")
async def stack(model: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningStack]:
    environment = {"OPENAI_BASE_URL": model.url, "OPENAI_API_KEY": "scripted", "LOG_LEVEL": "DEBUG"}
    async with RunningStack(tmp_path_factory.mktemp("stack"), environment=environment) as running:
        yield running


async def everything_on_topics(servers: str) -> bytes:
    """Returns the bytes of every record of every topic, keys and headers included."""
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest", enable_auto_commit=False)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic.name, n) for topic in all_topics() for n in range(topic.partitions)]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        content = bytearray()
        await consumer.seek_to_beginning()
        deadline = time.monotonic() + 30
        while any([await consumer.position(found) < end for found, end in ends.items()]):
            assert time.monotonic() < deadline
            for records in (await consumer.getmany(timeout_ms=500)).values():
                for record in records:
                    content += (record.key or b"") + (record.value or b"") + repr(record.headers).encode()
        return bytes(content)
    finally:
        await consumer.stop()


def everything_on_disk(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def traces_of_values(content: bytes) -> list[str]:
    spellings = {value: {value, value.replace(" ", ""), value.replace(" ", "-")} for value in VALUES}
    return [value for value, forms in spellings.items() if any(form.encode() in content for form in forms)]


@pytest.mark.parametrize("redaction", [True, False])
async def test_values_stay_with_the_client(stack: RunningStack, model: ModelServer, redaction: bool) -> None:
    model.reset()
    async with stack.client() as client:
        body = {
            "userPrompt": PROMPT,
            "conversationHistory": HISTORY,
            "userId": "maria",
            "options": {"enablePIIRedaction": redaction},
        }
        answer = await client.post("/api/upgrade", json=body)
        assert answer.status_code == 200, answer.text
        upgraded = answer.json()
    assert upgraded["status"] == "upgraded", upgraded
    assert upgraded["userPrompt"] == PROMPT
    assert MAIL in upgraded["upgradedPrompt"]
    assert CARD in upgraded["upgradedPrompt"]
    assert upgraded["userRef"].startswith("u_")

    calls = b"".join(str(request.body).encode() for request in model.requests)
    assert traces_of_values(calls) == ([] if redaction else list(VALUES))
    on_topics = await everything_on_topics(stack.endpoints()["kafka"])
    assert upgraded["id"].encode() in on_topics
    assert traces_of_values(on_topics) == []
    assert b'"maria"' not in on_topics
    for path, content in everything_on_disk(stack.data_dir).items():
        assert traces_of_values(content) == [], path
