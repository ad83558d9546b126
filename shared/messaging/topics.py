"""Creates the registered topics at the broker and updates their configuration to match the registry."""

import asyncio
from collections.abc import Sequence
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import IncompatibleBrokerVersion, KafkaError, TopicAlreadyExistsError, for_code

from shared.contracts.topics import Topic, all_topics
from shared.messaging.connection import make_admin
from shared.messaging.settings import KafkaSettings
from shared.observability.logs import get_logger

_WITHIN_SECONDS = 30.0
_EVERY_SECONDS = 0.2
_CALL_SECONDS = 10.0
_SET_ON_THE_TOPIC = 1  # Kafka's code for a value that was set on the topic itself, not inherited

log = get_logger(__name__)


class TopicsNotReady(Exception):
    """The topics did not exist in time, or one has fewer partitions than the registry demands."""


async def create_topics(
    settings: KafkaSettings, topics: Sequence[Topic] | None = None, within_seconds: float = _WITHIN_SECONDS
) -> None:
    """Creates missing topics and waits until the broker lists them all; `topics` defaults to the whole registry.

    Existing topics get the configuration of the registry, where the broker supports the change. Safe to repeat and to
    run in several processes at once. Raises TopicsNotReady.
    """
    wanted = tuple(topics) if topics is not None else all_topics()
    problem = "no broker answered"
    try:
        async with asyncio.timeout(within_seconds):
            while True:
                admin = make_admin(settings)
                try:
                    await admin.start()
                    problem = await _create_missing(admin, wanted, settings)
                    if not problem:
                        await _correct_configs(admin, wanted)
                        return
                except (KafkaError, OSError) as error:
                    problem = f"{type(error).__name__} at {settings.kafka_bootstrap_servers}"
                finally:
                    await admin.close()
                await asyncio.sleep(_EVERY_SECONDS)
    except TimeoutError as error:
        raise TopicsNotReady(problem) from error


async def _create_missing(admin: AIOKafkaAdminClient, wanted: Sequence[Topic], settings: KafkaSettings) -> str:
    """Requests what is missing. Returns "" when nothing was, else which topics. Raises TopicsNotReady."""
    present = {name: count for name, count in (await _partitions(admin)).items() if count > 0}
    missing = [topic for topic in wanted if topic.name not in present]
    for topic in wanted:
        if present.get(topic.name, topic.partitions) < topic.partitions:
            raise TopicsNotReady(f"{topic.name} has {present[topic.name]} partitions, not {topic.partitions}")
    if not missing:
        return ""
    answer = await admin.create_topics(
        [_new_topic(topic, settings) for topic in missing], timeout_ms=int(_CALL_SECONDS * 1000)
    )
    for name, code, *_ in answer.topic_errors:
        kind = for_code(code)
        if code and kind is not TopicAlreadyExistsError:
            log.warning("topic_not_created", topic=name, error=kind.__name__)
    return "missing: " + ", ".join(topic.name for topic in missing)


async def _partitions(admin: AIOKafkaAdminClient) -> dict[str, int]:
    """Partitions by topic. Describes all topics: some brokers create a topic that a request names."""
    described: list[dict[str, Any]] = await admin.describe_topics()
    return {topic["topic"]: len(topic["partitions"]) for topic in described if not topic["error_code"]}


def _new_topic(topic: Topic, settings: KafkaSettings) -> NewTopic:
    return NewTopic(
        name=topic.name,
        num_partitions=topic.partitions,
        replication_factor=settings.kafka_replication_factor,
        topic_configs=_configs(topic),
    )


def _configs(topic: Topic) -> dict[str, str]:
    """The topic's configuration under the broker's names."""
    return {
        "cleanup.policy": "compact" if topic.compacted else "delete",
        "retention.ms": str(topic.retention_ms),
        # The broker deletes whole segments, never the active one. With the default segment of a week, records would
        # outlive their retention.
        "segment.ms": str(topic.segment_ms),
        "max.message.bytes": str(topic.max_message_bytes),
    }


async def _correct_configs(admin: AIOKafkaAdminClient, topics: Sequence[Topic]) -> None:
    """Sets the registry's configuration on existing topics and keeps other values that were set on them.

    A broker that refuses or does not support the change is logged and used as it is. Raises KafkaError.
    """
    present = await _described(admin, topics)
    wrong = {topic.name: _configs(topic) for topic in topics if _differs(topic, present.get(topic.name, []))}
    if not wrong:
        return
    changes = [
        ConfigResource(ConfigResourceType.TOPIC, name, _set_on_the_topic(present[name]) | configs)
        for name, configs in wrong.items()
    ]
    try:
        answers = await admin.alter_configs(changes)
    except IncompatibleBrokerVersion as error:
        log.warning("topics_not_changed", topics=list(wrong), error=type(error).__name__)
        return
    for code, _, _, name in (resource for answer in answers for resource in answer.resources):
        if code:
            log.warning("topics_not_changed", topics=[name], error=for_code(code).__name__)
        else:
            log.info("topic_changed", topic=name, configs=wrong[name])


async def _described(admin: AIOKafkaAdminClient, topics: Sequence[Topic]) -> dict[str, list[Any]]:
    """The configuration entries of each topic that the broker describes."""
    answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic.name) for topic in topics])
    resources = [resource for answer in answers for resource in answer.resources]
    return {name: entries for code, _, _, name, entries in resources if not code}


def _differs(topic: Topic, entries: Sequence[Any]) -> bool:
    """Whether the broker supports one of our configuration names and has another value for it."""
    values = {entry[0]: entry[1] for entry in entries}
    return any(name in values and values[name] != value for name, value in _configs(topic).items())


def _set_on_the_topic(entries: Sequence[Any]) -> dict[str, str]:
    """The values set on the topic itself; `alter_configs` would remove those that a change leaves out."""
    return {entry[0]: entry[1] for entry in entries if entry[3] == _SET_ON_THE_TOPIC and entry[1] is not None}
