"""The batch runner against a real broker."""

import asyncio
from collections.abc import Awaitable, Callable

from shared.contracts.topics import Topic, dead_letter_topic
from shared.messaging.cloudevents import Envelope
from shared.messaging.consume.batch_runner import BatchRunner
from shared.messaging.errors import Transient
from shared.messaging.publish.producer import EventProducer
from shared.messaging.settings import KafkaSettings
from tests.component.messaging_setup import (
    Ended,
    Parcel,
    committed,
    created,
    number_of,
    own_topic,
    records_of,
    send,
)
from tests.component.messaging_setup import broker_settings as broker_settings
from tests.component.messaging_setup import running_producer as running_producer
from tests.conftest import eventually


def batches(
    settings: KafkaSettings,
    topics: list[Topic],
    producer: EventProducer,
    handler: Callable[[list[Envelope]], Awaitable[None]],
    telemetry: Ended | None = None,
) -> BatchRunner:
    return BatchRunner(
        settings=settings,
        topics=topics,
        group=f"tests.{topics[0].name}",
        handler=handler,
        producer=producer,
        telemetry=telemetry or Ended(),
    )


async def all_committed(settings: KafkaSettings, topic: Topic, count: int) -> None:
    async def reached() -> bool:
        return await committed(settings, topic, f"tests.{topic.name}") == count

    await eventually(reached, 10)


async def test_batches_of_several_topics_are_handled_and_committed(
    settings: KafkaSettings, producer: EventProducer
) -> None:
    one, other = await created(settings, own_topic()), await created(settings, own_topic())
    await asyncio.gather(*(producer.publish(one, str(n), Parcel(number=n)) for n in range(200)))
    await send(producer, other, range(200, 220))
    seen: list[int] = []
    sizes: list[int] = []

    async def note(envelopes: list[Envelope]) -> None:
        sizes.append(len(envelopes))
        seen.extend(map(number_of, envelopes))

    ended = Ended()
    runner = batches(settings, [one, other], producer, note, ended)
    await runner.start()
    await all_committed(settings, one, 200)
    await runner.check()
    await runner.stop(2)
    assert sorted(seen) == list(range(220))
    assert len(sizes) < 20
    assert ended.reasons == []


async def test_a_transient_error_is_retried_and_nothing_is_committed_meanwhile(
    settings: KafkaSettings, producer: EventProducer
) -> None:
    topic = await created(settings, own_topic(partitions=1))
    await send(producer, topic, range(5))
    out, tries, seen = True, 0, list[int]()

    async def note(envelopes: list[Envelope]) -> None:
        nonlocal tries
        tries += 1
        if out:
            raise Transient("store is out")
        seen.extend(map(number_of, envelopes))

    runner = batches(settings, [topic], producer, note)
    await runner.start()

    async def tried() -> bool:
        return tries >= 4

    await eventually(tried, 10)
    assert await committed(settings, topic) == 0
    out = False
    await all_committed(settings, topic, 5)
    await runner.stop(2)
    assert seen == list(range(5))


async def test_events_that_fail_alone_are_dead_lettered(settings: KafkaSettings, producer: EventProducer) -> None:
    topic = await created(settings, own_topic(partitions=1))
    await send(producer, topic, range(2))
    await producer.publish_record(topic, b"k", b"garbage", [("odd", b"\xff\xfe"), ("ce_id", b"\xff")])
    await send(producer, topic, range(3, 6))
    counted = set[int]()

    async def four_is_poison(envelopes: list[Envelope]) -> None:
        if any(number_of(envelope) == 4 for envelope in envelopes):
            raise ValueError("4 is not countable")
        counted.update(map(number_of, envelopes))

    runner = batches(settings, [topic], producer, four_is_poison)
    await runner.start()
    await all_committed(settings, topic, 6)
    await runner.stop(2)
    assert counted == {0, 1, 3, 5}
    letters = await records_of(settings, dead_letter_topic(topic))
    assert [dict(letter.headers)["dlq_source_offset"] for letter in letters] == [b"2", b"4"]
    assert dict(letters[0].headers)["odd"] == b"\xff\xfe"
