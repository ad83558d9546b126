"""What the broker is told of a topic of the registry: when it is created, and when the registry has changed since."""

from collections.abc import Sequence
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import IncompatibleBrokerVersion, for_code

from shared.contracts.topics import Topic
from shared.observability.logs import get_logger

_SET_ON_THE_TOPIC = 1

log = get_logger(__name__)


def topic_configs(topic: Topic) -> dict[str, str]:
    """The broker's settings of a topic, by their names there."""
    return {
        "cleanup.policy": "delete",
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
