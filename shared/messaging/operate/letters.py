"""Reads, replays and drops the dead letters of a topic.

Letters are not deleted. A replay or drop is recorded as a further record in the dead-letter topic: this works on every
broker and for any single letter, and the record expires like the letter.
"""

from dataclasses import dataclass
from enum import StrEnum

from aiokafka import ConsumerRecord

from shared.contracts.topics import DEAD_LETTER_SUFFIX, TOPICS, Topic, consumed_by_us, dead_letter_topic
from shared.messaging.operate.topic_reading import read_all
from shared.messaging.publish import dead_letters as headers
from shared.messaging.publish.producer import EventProducer
from shared.messaging.settings import KafkaSettings

_RESOLUTION = "dlq_resolution"
_RESOLVED = "dlq_resolved"


class Resolution(StrEnum):
    REPLAYED = "replayed"
    DROPPED = "dropped"


class NoBody(Exception):
    """The letter was stored without its body, which was too large, and cannot be replayed."""


@dataclass(frozen=True)
class Letter:
    """One dead letter. `place` is `partition/offset` in the dead-letter topic; `headers` are the original headers.

    `why` holds the `dlq_` headers. `resolution` is None while the letter is open.
    """

    source: Topic
    place: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    why: dict[str, str]
    resolution: Resolution | None

    @property
    def has_body(self) -> bool:
        return headers.BODY_SIZE not in self.why


def topics_with_dead_letters() -> list[Topic]:
    return [topic for topic in TOPICS if consumed_by_us(topic)]


def source_topic_named(name: str) -> Topic:
    """Returns the source topic, found by its own name or that of its dead-letter topic. Raises KeyError."""
    return {topic.name: topic for topic in topics_with_dead_letters()}[name.removesuffix(DEAD_LETTER_SUFFIX)]


async def letters_of(settings: KafkaSettings, source: Topic) -> list[Letter]:
    """Returns all letters, resolved ones included, by place. Raises KafkaError, OSError or TimeoutError."""
    records = await read_all(settings, dead_letter_topic(source))
    resolutions: dict[str, Resolution] = {}
    for record in records:
        note = dict(record.headers)
        if _RESOLUTION in note:
            resolutions[note[_RESOLVED].decode()] = Resolution(note[_RESOLUTION].decode())
    return [
        _letter(source, record, resolutions.get(_place(record)))
        for record in records
        if headers.SOURCE_OFFSET in dict(record.headers)
    ]


async def replay(producer: EventProducer, letter: Letter) -> None:
    """Publishes the original record to its topic again, which is safe: stages reuse their recorded output.

    Raises NoBody and PublishFailed.
    """
    if not letter.has_body:
        raise NoBody(f"{letter.place} was stored without its body")
    await producer.publish_record(letter.source, letter.key, letter.value, list(letter.headers))
    await _resolve(producer, letter, Resolution.REPLAYED)


async def drop(producer: EventProducer, letter: Letter) -> None:
    """Marks a letter as done. Raises PublishFailed."""
    await _resolve(producer, letter, Resolution.DROPPED)


async def _resolve(producer: EventProducer, letter: Letter, resolution: Resolution) -> None:
    note = [(_RESOLUTION, resolution.value.encode()), (_RESOLVED, letter.place.encode())]
    await producer.publish_record(dead_letter_topic(letter.source), letter.key, b"", note)


def _place(record: ConsumerRecord) -> str:
    return f"{record.partition}/{record.offset}"


def _letter(source: Topic, record: ConsumerRecord, resolution: Resolution | None) -> Letter:
    original = tuple(item for item in record.headers if not item[0].startswith(headers.HEADER_PREFIX))
    why = {
        name: content.decode(errors="replace")
        for name, content in record.headers
        if name.startswith(headers.HEADER_PREFIX)
    }
    return Letter(source, _place(record), record.key, record.value, original, why, resolution)
