"""The dead letters of a topic as operators see them: what lies there, and what has become of it.

Nothing is deleted. What was replayed or dropped is noted by a record in the dead-letter topic itself, which works on
every broker, holds for a single letter in the middle, and goes with the topic's retention like the letter does.
"""

from dataclasses import dataclass
from enum import StrEnum

from aiokafka import ConsumerRecord

from shared.contracts.topics import DEAD_LETTER_SUFFIX, TOPICS, Topic, consumed_by_us, dead_letter_topic
from shared.messaging.operate.topic_reading import read_all
from shared.messaging.publish import dead_letters as names
from shared.messaging.publish.producer import EventProducer
from shared.messaging.settings import KafkaSettings

_RESOLUTION = "dlq_resolution"
_RESOLVED = "dlq_resolved"


class Resolution(StrEnum):
    REPLAYED = "replayed"
    DROPPED = "dropped"


class NoBody(Exception):
    """The letter was too large to keep its body, so it cannot be replayed."""


@dataclass(frozen=True)
class Letter:
    """One dead letter. `place` is `partition/offset` in the dead-letter topic; `headers` are the original ones."""

    source: Topic
    place: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    why: dict[str, str]
    resolution: Resolution | None

    @property
    def has_body(self) -> bool:
        return names.BODY_SIZE not in self.why


def topics_with_dead_letters() -> list[Topic]:
    return [topic for topic in TOPICS if consumed_by_us(topic)]


def source_topic_named(name: str) -> Topic:
    """The topic whose dead letters are meant, by its own name or theirs; KeyError when there is none."""
    return {topic.name: topic for topic in topics_with_dead_letters()}[name.removesuffix(DEAD_LETTER_SUFFIX)]


async def letters_of(settings: KafkaSettings, source: Topic) -> list[Letter]:
    """All letters that the broker still has, oldest first, also those that are resolved."""
    records = await read_all(settings, dead_letter_topic(source))
    resolutions: dict[str, Resolution] = {}
    for record in records:
        headers = dict(record.headers)
        if _RESOLUTION in headers:
            resolutions[headers[_RESOLVED].decode()] = Resolution(headers[_RESOLUTION].decode())
    return [
        _letter(source, record, resolutions.get(_place(record)))
        for record in records
        if names.SOURCE_OFFSET in dict(record.headers)
    ]


async def replay(producer: EventProducer, letter: Letter) -> None:
    """Sends the original record to its topic again. Harmless for what has ended: stages repeat what they recorded.

    Raises NoBody, and PublishFailed when the broker does not confirm.
    """
    if not letter.has_body:
        raise NoBody(f"{letter.place} was kept without its body")
    await producer.publish_record(letter.source, letter.key, letter.value, list(letter.headers))
    await _resolve(producer, letter, Resolution.REPLAYED)


async def drop(producer: EventProducer, letter: Letter) -> None:
    """Notes that nothing more is to be done about a letter. Raises PublishFailed."""
    await _resolve(producer, letter, Resolution.DROPPED)


async def _resolve(producer: EventProducer, letter: Letter, resolution: Resolution) -> None:
    note = [(_RESOLUTION, resolution.value.encode()), (_RESOLVED, letter.place.encode())]
    await producer.publish_record(dead_letter_topic(letter.source), letter.key, b"", note)


def _place(record: ConsumerRecord) -> str:
    return f"{record.partition}/{record.offset}"


def _letter(source: Topic, record: ConsumerRecord, resolution: Resolution | None) -> Letter:
    original = tuple(item for item in record.headers if not item[0].startswith(names.HEADER_PREFIX))
    why = {
        name: content.decode(errors="replace")
        for name, content in record.headers
        if name.startswith(names.HEADER_PREFIX)
    }
    return Letter(source, _place(record), record.key, record.value, original, why, resolution)
