"""Builds the AsyncAPI document of all topics from the topic registry, by means of FastStream."""

import re
from typing import Any

import orjson
from faststream.kafka import KafkaBroker
from faststream.specification import AsyncAPI

from shared.contracts.contract import Contract
from shared.contracts.topics import TOPICS, Topic, consumed_by_us

_TITLE = "Prompt Upgrader events"
_VERSION = "1.0.0"
_DESCRIPTION = (
    "CloudEvents 1.0 in Kafka binary mode: attributes in ce_* headers, a W3C traceparent, JSON with camelCase fields. "
    "Delivered at least once: dedupe by ce_id. No order is promised."
)
_HEADERS = {
    "type": "object",
    "required": ["ce_specversion", "ce_id", "ce_source", "ce_type"],
    "properties": {
        "ce_specversion": {"type": "string", "const": "1.0"},
        "ce_id": {"type": "string", "description": "the event's id, the same in every copy: dedupe by it"},
        "ce_source": {"type": "string", "description": "the service that made the event"},
        "ce_type": {"type": "string", "description": "the topic"},
        "ce_subject": {"type": "string", "description": "the upgrade id, where there is one"},
        "ce_time": {"type": "string", "format": "date-time"},
        "ce_dataschema": {"type": "string", "format": "uri"},
        "content-type": {"type": "string", "const": "application/json"},
        "traceparent": {"type": "string", "description": "W3C trace context"},
    },
}


def asyncapi_document() -> dict[str, Any]:
    """Returns the AsyncAPI 3.0 document as JSON-ready values with sorted keys.

    Each topic has a send operation and, if one of the services reads it, a receive operation.
    """
    broker = KafkaBroker("kafka:9092", logger=None, description="The broker; its address is a matter of deployment.")
    for topic in TOPICS:
        _declare(broker, topic)
    specification = AsyncAPI(broker, title=_TITLE, version=_VERSION, description=_DESCRIPTION)
    # FastStream puts colons into component names, where AsyncAPI does not allow them.
    text = re.sub(r":(Message|SubscribeMessage)\b", r".\1", str(specification.to_specification().to_json()))
    document: dict[str, Any] = orjson.loads(text)
    for message in document["components"]["messages"].values():
        message.pop("correlationId", None)
        message["contentType"] = "application/json"
        message["headers"] = _HEADERS
    sorted_document: dict[str, Any] = orjson.loads(orjson.dumps(document, option=orjson.OPT_SORT_KEYS))
    return sorted_document


def _declare(broker: KafkaBroker, topic: Topic) -> None:
    model = topic.model
    if model is None:
        return
    readers = [consumer for consumer in topic.consumers if consumer != "internal teams"]
    broker.publisher(topic.name, title=topic.name, description=_describe(topic), schema=model)
    if readers:
        subscriber = broker.subscriber(
            topic.name,
            group_id=readers[0],
            title=f"{topic.name}.{readers[0]}",
            description=_describe(topic),
        )
        subscriber(_reader_of(model))


def _reader_of(model: type[Contract]) -> Any:
    """A subscriber function. FastStream uses only its annotation."""

    async def receive(message: Any) -> None:
        raise NotImplementedError("declared for the document only")

    receive.__annotations__["message"] = model
    receive.__name__ = f"receive_{model.__name__}"
    return receive


def _describe(topic: Topic) -> str:
    dead_letters = f" Dead letters: {topic.dead_letter_name}." if consumed_by_us(topic) else ""
    return (
        f"{topic.description} A {topic.kind.value}, owned by {topic.owner}; written by {', '.join(topic.producers)}; "
        f"read by {', '.join(topic.consumers)}. Key: {topic.key}. {topic.partitions} partitions, kept {topic.kept}, "
        f"records up to {topic.max_message_bytes // 1024} KiB.{dead_letters}"
    )
