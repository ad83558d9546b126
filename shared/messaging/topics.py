"""Creates the topics of the registry and keeps their configuration as it says."""

import asyncio
from collections.abc import Sequence
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import IncompatibleBrokerVersion, KafkaError, TopicAlreadyExistsError, for_code

from shared.contracts.topics import DEAD_LETTER_HEADROOM, Topic, all_topics
from shared.messaging.connection import make_admin
from shared.messaging.settings import KafkaSettings
from shared.observability.logs import get_logger

_SET_ON_THE_TOPIC = 1

log = get_logger(__name__)


def topic_configs(topic: Topic) -> dict[str, str]:
    """The broker's settings of a topic, by their names there."""
    return {
        "cleanup.policy": "compact" if topic.compacted else "delete",
        "retention.ms": str(topic.retention_ms),
        # A file that is still written to is kept whole, by default for a week: its oldest records would outlive theirs.
        "segment.ms": str(topic.segment_ms),
        "max.message.bytes": str(topic.max_message_bytes),
    }


async def correct_configs(admin: AIOKafkaAdminClient, topics: Sequence[Topic]) -> None:
    """Gives topics that are there the settings of the registry; what else is set on them stays.

    A broker that does not let us change them, or cannot, is told of in the log, and serves as it is. Raises KafkaError
    when it cannot be asked.
    """
    present = await _described(admin, topics)
    wrong = {topic.name: topic_configs(topic) for topic in topics if _differs(topic, present.get(topic.name, []))}
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
    """The broker's entries for each topic that it lets us see."""
    answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic.name) for topic in topics])
    resources = [resource for answer in answers for resource in answer.resources]
    return {name: entries for code, _, _, name, entries in resources if not code}


def _differs(topic: Topic, entries: Sequence[Any]) -> bool:
    """Whether the broker knows a setting and has another value for it."""
    values = {entry[0]: entry[1] for entry in entries}
    return any(name in values and values[name] != value for name, value in topic_configs(topic).items())


def _set_on_the_topic(entries: Sequence[Any]) -> dict[str, str]:
    """What was set on the topic itself: a change replaces all of it."""
    return {entry[0]: entry[1] for entry in entries if entry[3] == _SET_ON_THE_TOPIC and entry[1] is not None}


_WITHIN_SECONDS = 30.0
_EVERY_SECONDS = 0.2
_CALL_SECONDS = 10.0


class TopicsNotReady(Exception):
    """The broker did not come up with the topics in time, or has one with fewer partitions than the registry says."""


async def create_topics(
    settings: KafkaSettings, topics: Sequence[Topic] | None = None, within_seconds: float = _WITHIN_SECONDS
) -> None:
    """Creates what is missing of `topics` (all of the registry) and waits until every broker shows them. Those that
    are there get the retention and the sizes that the registry says now, where the broker lets us.

    Safe to repeat and to run in several processes at once. Raises TopicsNotReady.
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
                        await correct_configs(admin, wanted)
                        return
                except (KafkaError, OSError) as error:
                    problem = f"{type(error).__name__} at {settings.kafka_bootstrap_servers}"
                finally:
                    await admin.close()
                await asyncio.sleep(_EVERY_SECONDS)
    except TimeoutError as error:
        raise TopicsNotReady(problem) from error


async def _create_missing(admin: AIOKafkaAdminClient, wanted: Sequence[Topic], settings: KafkaSettings) -> str:
    """One round: empty when all topics are there, else what is still missing. Raises TopicsNotReady for good."""
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
    """Partitions by topic. Asked for all topics, since asking for one by name would make some brokers create it."""
    described: list[dict[str, Any]] = await admin.describe_topics()
    return {topic["topic"]: len(topic["partitions"]) for topic in described if not topic["error_code"]}


def _new_topic(topic: Topic, settings: KafkaSettings) -> NewTopic:
    return NewTopic(
        name=topic.name,
        num_partitions=topic.partitions,
        replication_factor=settings.kafka_replication_factor,
        topic_configs=topic_configs(topic),
    )


__all__ = ["DEAD_LETTER_HEADROOM", "TopicsNotReady", "create_topics"]
