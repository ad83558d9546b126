"""The AsyncAPI document follows the registry of topics."""

import json

from shared.contracts.topics import TOPICS, consumed_by_us
from shared.messaging.operate.asyncapi import asyncapi_document


def test_every_topic_is_a_channel_with_its_model_and_its_description() -> None:
    document = asyncapi_document()
    assert document["asyncapi"].startswith("3.")
    for topic in TOPICS:
        assert topic.model is not None
        channel = document["channels"][topic.name]
        assert channel["address"] == topic.name
        assert topic.description in channel["description"]
        assert topic.model.__name__ in document["components"]["schemas"]
        assert (topic.dead_letter_name in channel["description"]) == consumed_by_us(topic)


def test_every_consuming_service_is_an_operation() -> None:
    document = asyncapi_document()
    received = {
        document["channels"][operation["channel"]["$ref"].split("/")[-1]]["address"]
        for operation in document["operations"].values()
        if operation["action"] == "receive"
    }
    assert received == {topic.name for topic in TOPICS if set(topic.consumers) - {"internal teams"}}


def test_messages_are_cloud_events_and_all_references_resolve() -> None:
    document = asyncapi_document()
    for message in document["components"]["messages"].values():
        assert "ce_id" in message["headers"]["required"]
    for reference in _references(document):
        found = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]


def test_the_document_is_the_same_every_time() -> None:
    assert json.dumps(asyncapi_document()) == json.dumps(asyncapi_document())


def _references(node: object) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for value in node.values() for found in _references(value)]
    if isinstance(node, list):
        return [found for value in node for found in _references(value)]
    return []
