"""The stage runner against a real broker: concurrency, retries, dead letters, deadlines, draining."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared.contracts.contract import Contract
from shared.contracts.topics import Topic, dead_letter_topic
from shared.contracts.upgrade_tasks import GivenUp, GiveUpReason
from shared.messaging.cloudevents import Envelope, encode
from shared.messaging.connection import make_producer
from shared.messaging.errors import PublishFailed, Transient, Unprocessable
from shared.messaging.publish.dead_letters import DeadLetters
from shared.messaging.publish.producer import EventProducer
from shared.messaging.settings import KafkaSettings
from tests.component.messaging_setup import (
    Ended,
    Parcel,
    TimedParcel,
    committed,
    created,
    number_of,
    own_topic,
    records_of,
    send,
    settings_for,
    stage,
)
from tests.component.messaging_setup import broker_settings as broker_settings
from tests.component.messaging_setup import running_producer as running_producer
from tests.conftest import eventually


async def everything_committed(settings: KafkaSettings, topic: Topic, count: int) -> None:
    async def reached() -> bool:
        return await committed(settings, topic) == count

    await eventually(reached, 10)


async def test_a_thousand_messages_run_at_once_on_four_partitions(
    settings: KafkaSettings, producer: EventProducer
) -> None:
    topic = await created(settings, own_topic())
    await asyncio.gather(*(producer.publish(topic, str(n), Parcel(number=n)) for n in range(1200)))
    release, seen = asyncio.Event(), set[int]()

    async def wait_for_release(envelope: Envelope) -> None:
        seen.add(number_of(envelope))
        await release.wait()

    runner = stage(settings, topic, producer, wait_for_release, concurrency=1000)
    await runner.start()

    async def full() -> bool:
        return runner._in_flight == 1000

    await eventually(full, 10)
    await asyncio.sleep(0.7)  # long enough for a second pause and poll
    assert runner._in_flight == 1000
    assert await committed(settings, topic) == 0
    release.set()
    await everything_committed(settings, topic, 1200)
    assert seen == set(range(1200))
    await runner.stop(1)


async def test_unfinished_messages_are_delivered_again_after_a_kill(
    settings: KafkaSettings, producer: EventProducer
) -> None:
    topic = await created(settings, own_topic(partitions=1))
    await send(producer, topic, range(20))
    first, second = set[int](), set[int]()

    async def all_but_seven(envelope: Envelope) -> None:
        if number_of(envelope) == 7:
            await asyncio.Event().wait()
        first.add(number_of(envelope))

    killed = stage(settings, topic, producer, all_but_seven)
    await killed.start()
    await everything_committed(settings, topic, 7)
    assert first == set(range(20)) - {7}
    await killed.stop(0)
    assert await committed(settings, topic) == 7

    async def note(envelope: Envelope) -> None:
        second.add(number_of(envelope))

    runner = stage(settings, topic, producer, note)
    await runner.start()
    await everything_committed(settings, topic, 20)
    assert second == set(range(7, 20))
    await runner.stop(1)


async def test_an_undecodable_record_is_dead_lettered_with_its_bytes_and_the_partition_moves_on(
    settings: KafkaSettings, producer: EventProducer
) -> None:
    topic = await created(settings, own_topic(partitions=1))
    value, headers = encode(topic, Parcel(number=1), source="tests")
    future = [(name, b"2.0" if name == "ce_specversion" else content) for name, content in headers]
    unheaded = [(name, content) for name, content in headers if name != "ce_id"]
    await producer.publish_record(topic, b"a", b"\xff{not json", headers)
    await producer.publish_record(topic, b"b", b'{"text": "secret"}', headers)
    await producer.publish_record(topic, b"c", value, future)
    await producer.publish_record(topic, None, b"", unheaded)
    await send(producer, topic, range(4, 6))
    seen = set[int]()

    async def note(envelope: Envelope) -> None:
        seen.add(number_of(envelope))

    runner = stage(settings, topic, producer, note)
    await runner.start()
    await everything_committed(settings, topic, 6)
    await runner.stop(1)
    assert seen == {4, 5}
    letters = sorted(
        await records_of(settings, dead_letter_topic(topic)), key=lambda r: dict(r.headers)["dlq_source_offset"]
    )
    assert [(letter.key, letter.value) for letter in letters] == [
        (b"a", b"\xff{not json"),
        (b"b", b'{"text": "secret"}'),
        (b"c", value),
        (None, b""),
    ]
    added = dict(letters[1].headers)
    assert set(headers) <= set(letters[1].headers)
    assert added["dlq_source_topic"] == topic.name.encode()
    assert added["dlq_source_partition"] == b"0"
    assert added["dlq_attempts"] == b"1"
    assert added["dlq_error_class"] == b"Undecodable"
    assert added["dlq_error_detail"] == b"schema violated at number: missing"
    assert b"secret" not in b"".join(added.values())


async def test_null_headers_and_impossible_deadlines_do_not_block_a_partition(
    settings: KafkaSettings, producer: EventProducer
) -> None:
    topic = await created(settings, own_topic(TimedParcel, partitions=1))
    _, headers = encode(topic, Parcel(number=1), source="tests")
    null_id: list[Any] = [(name, None if name == "ce_id" else content) for name, content in headers]
    await producer.publish_record(topic, b"a", b"{}", null_id)
    await producer.publish_record(topic, b"b", b'{"number": 1, "deadline": "0001-01-01T00:00:00Z"}', headers)
    await producer.publish_record(topic, b"c", b'{"number": 1, "deadline": "2026-11-23T00:00:00"}', headers)
    await send(producer, topic, range(2, 3), deadline=datetime.now(UTC) + timedelta(minutes=1))
    seen = set[int]()

    async def note(envelope: Envelope) -> None:
        seen.add(number_of(envelope))

    runner = stage(settings, topic, producer, note)
    await runner.start()
    await everything_committed(settings, topic, 4)
    await runner.stop(1)
    assert seen == {2}
    letters = await records_of(settings, dead_letter_topic(topic))
    classes = {letter.key: dict(letter.headers)["dlq_error_class"] for letter in letters}
    assert classes == {b"a": b"Undecodable", b"b": b"Overdue", b"c": b"Undecodable"}


async def test_unknown_errors_are_tried_three_times_then_dead_lettered_and_given_up(
    settings: KafkaSettings, producer: EventProducer
) -> None:
    topic = await created(settings, own_topic())
    await send(producer, topic, range(3))
    tries: list[int] = []
    given_up: list[tuple[int, GivenUp]] = []

    async def fails_on_one(envelope: Envelope) -> None:
        if number_of(envelope) == 1:
            tries.append(1)
            raise RuntimeError("card 4111 1111 1111 1111")

    async def give_up(envelope: Envelope, why: GivenUp) -> None:
        given_up.append((number_of(envelope), why))

    runner = stage(settings, topic, producer, fails_on_one, give_up=give_up)
    await runner.start()
    await everything_committed(settings, topic, 3)
    await runner.stop(1)
    assert len(tries) == 3
    assert [(number, why.reason) for number, why in given_up] == [(1, GiveUpReason.UNPROCESSABLE)]
    (letter,) = await records_of(settings, dead_letter_topic(topic))
    assert dict(letter.headers)["dlq_error_class"] == b"RuntimeError"
    assert b"4111" not in b"".join(content for _, content in letter.headers)


class BrokenForDeadLetters(EventProducer):
    """A producer that fails to write dead letters."""

    broken = True

    async def publish_record(
        self, topic: Topic, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]
    ) -> None:
        if self.broken and topic.name.endswith(".dlq"):
            raise PublishFailed("out")
        await super().publish_record(topic, key, value, headers)


async def test_nothing_is_committed_while_the_dead_letter_cannot_be_written(settings: KafkaSettings) -> None:
    topic = await created(settings, own_topic(partitions=1))
    producer = BrokenForDeadLetters(settings, source="tests")
    await producer.start()
    await send(producer, topic, range(2))
    await producer.publish_record(topic, b"k", b"poison", [])
    await send(producer, topic, range(3, 6))
    seen = set[int]()

    async def note(envelope: Envelope) -> None:
        seen.add(number_of(envelope))

    runner = stage(settings, topic, producer, note)
    await runner.start()
    await everything_committed(settings, topic, 2)
    assert seen == {0, 1, 3, 4, 5}
    producer.broken = False
    await everything_committed(settings, topic, 6)
    await runner.stop(1)
    await producer.stop(1)


async def test_a_retry_does_not_delay_other_messages(settings: KafkaSettings, producer: EventProducer) -> None:
    topic = await created(settings, own_topic(partitions=1))
    await send(producer, topic, range(50))
    out, seen, tries = True, set[int](), 0

    async def first_is_out(envelope: Envelope) -> None:
        nonlocal tries
        if number_of(envelope) == 0 and out:
            tries += 1
            raise Transient("store is out")
        seen.add(number_of(envelope))

    runner = stage(settings, topic, producer, first_is_out, concurrency=4)
    await runner.start()

    async def the_others_are_done() -> bool:
        return seen == set(range(1, 50)) and tries > 2

    await eventually(the_others_are_done, 10)
    assert await committed(settings, topic) == 0
    out = False
    await everything_committed(settings, topic, 50)
    assert seen == set(range(50))
    await runner.stop(1)


def timed(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


async def test_a_late_message_is_given_up_at_once_and_others_at_their_deadline(
    settings: KafkaSettings, producer: EventProducer
) -> None:
    topic = await created(settings, own_topic(TimedParcel))
    runner_is_in = asyncio.Event()
    handled: list[int] = []
    given_up: dict[int, tuple[GivenUp, float]] = {}

    async def handler(envelope: Envelope) -> None:
        number = number_of(envelope)
        handled.append(number)
        if number == 0:
            runner_is_in.set()
        if number == 2:
            raise Transient("out")
        if number == 3:
            await asyncio.Event().wait()

    async def give_up(envelope: Envelope, why: GivenUp) -> None:
        given_up[number_of(envelope)] = (why, time.monotonic())

    runner = stage(settings, topic, producer, handler, give_up=give_up)
    await runner.start()
    await send(producer, topic, range(1), deadline=timed(60))
    await asyncio.wait_for(runner_is_in.wait(), 10)
    began = time.monotonic()
    await send(producer, topic, range(1, 2), deadline=timed(-1))
    await send(producer, topic, range(2, 4), deadline=timed(1.5))
    await everything_committed(settings, topic, 4)
    await runner.stop(1)
    assert {number: why.reason for number, (why, _) in given_up.items()} == dict.fromkeys(
        (1, 2, 3), GiveUpReason.DEADLINE
    )
    assert 1 not in handled
    assert handled.count(2) > 2
    assert given_up[1][1] - began < 1
    assert given_up[3][1] - began < 2.5
    assert await records_of(settings, dead_letter_topic(topic)) == []


async def test_without_a_deadline_the_retry_budget_ends_in_a_dead_letter(
    kafka_servers: str, producer: EventProducer
) -> None:
    settings = settings_for(kafka_servers, stage_retry_budget_seconds=0.5)
    topic = await created(settings, own_topic())
    await send(producer, topic, range(1))

    async def always_out(envelope: Envelope) -> None:
        raise Transient("store is out")

    runner = stage(settings, topic, producer, always_out)
    await runner.start()
    await everything_committed(settings, topic, 1)
    await runner.stop(1)
    (letter,) = await records_of(settings, dead_letter_topic(topic))
    assert dict(letter.headers)["dlq_error_detail"] == b"store is out"


async def test_a_failing_give_up_is_repeated_and_nothing_is_committed_meanwhile(
    settings: KafkaSettings, producer: EventProducer
) -> None:
    topic = await created(settings, own_topic(TimedParcel, partitions=1))
    await send(producer, topic, range(1), deadline=timed(-1))
    out, tries = True, 0

    async def never(envelope: Envelope) -> None:
        raise AssertionError("late messages are not handled")

    async def give_up(envelope: Envelope, why: GivenUp) -> None:
        nonlocal tries
        tries += 1
        if out:
            raise Transient("broker is out")

    runner = stage(settings, topic, producer, never, give_up=give_up)
    await runner.start()

    async def tried() -> bool:
        return tries >= 3

    await eventually(tried, 10)
    assert await committed(settings, topic) == 0
    out = False
    await everything_committed(settings, topic, 1)
    await runner.stop(1)


async def test_stop_lets_messages_in_progress_finish(settings: KafkaSettings, producer: EventProducer) -> None:
    topic = await created(settings, own_topic())
    await send(producer, topic, range(30))
    started, finished = set[int](), set[int]()

    async def takes_a_second(envelope: Envelope) -> None:
        started.add(number_of(envelope))
        await asyncio.sleep(1)
        finished.add(number_of(envelope))

    runner = stage(settings, topic, producer, takes_a_second, concurrency=10)
    await runner.start()

    async def busy() -> bool:
        return runner._in_flight == 10

    await eventually(busy, 10)
    before = time.monotonic()
    await runner.stop(10)
    assert time.monotonic() - before < 5
    assert finished == started
    assert len(finished) < 30
    assert runner._in_flight == 0


async def test_the_span_of_uncommitted_records_is_bounded(kafka_servers: str, producer: EventProducer) -> None:
    settings = settings_for(kafka_servers, stage_max_uncommitted=50)
    topic = await created(settings, own_topic(partitions=1))
    await asyncio.gather(*(producer.publish(topic, str(n), Parcel(number=n)) for n in range(400)))
    release, seen = asyncio.Event(), set[int]()
    first = (await records_of(settings, topic))[0]

    async def one_hangs(envelope: Envelope) -> None:
        if envelope.event_id == dict(first.headers)["ce_id"].decode():
            await release.wait()
        seen.add(number_of(envelope))

    runner = stage(settings, topic, producer, one_hangs, concurrency=16)
    await runner.start()

    async def stuck() -> bool:
        return len(seen) >= 45

    await eventually(stuck, 10)
    await asyncio.sleep(0.5)  # without the pause it would read on meanwhile
    assert len(seen) <= 50 + 16
    release.set()
    await everything_committed(settings, topic, 400)
    assert seen == set(range(400))
    await runner.stop(1)


async def test_a_record_over_the_limit_is_dead_lettered_without_its_body(
    settings: KafkaSettings, producer: EventProducer
) -> None:
    topic = await created(settings, own_topic(partitions=1))
    large = make_producer(settings, 8 << 20)
    await large.start()
    await send(producer, topic, range(1))
    await large.send_and_wait(topic.name, b"x" * (5 << 20), key=b"k", partition=0)
    await send(producer, topic, range(2, 3))
    await large.stop()
    seen = set[int]()

    async def note(envelope: Envelope) -> None:
        seen.add(number_of(envelope))

    runner = stage(settings, topic, producer, note)
    await runner.start()
    await everything_committed(settings, topic, 3)
    await runner.stop(1)
    assert seen == {0, 2}
    (letter,) = await records_of(settings, dead_letter_topic(topic))
    added = dict(letter.headers)
    assert letter.value is None
    assert added["dlq_body_bytes"] == str(5 << 20).encode()
    assert len(added["dlq_body_sha256"]) == 64


def test_a_contract_is_what_the_tests_send() -> None:
    assert issubclass(TimedParcel, Contract)


async def test_a_fault_of_the_runner_ends_the_process_and_commits_nothing(
    settings: KafkaSettings, producer: EventProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = await created(settings, own_topic(partitions=1))
    await send(producer, topic, range(3))

    async def broken(_: DeadLetters, *__: Any, **___: Any) -> None:
        raise RuntimeError("a programming error")

    async def refuse(_: Envelope) -> None:
        raise Unprocessable("refused")

    monkeypatch.setattr(DeadLetters, "write", broken)
    ended = Ended()
    runner = stage(settings, topic, producer, refuse, telemetry=ended)
    await runner.start()

    async def told() -> bool:
        return bool(ended.reasons)

    await eventually(told, 10)
    await runner.stop(1)
    assert "RuntimeError" in ended.reasons[0]
    assert await committed(settings, topic) == 0
