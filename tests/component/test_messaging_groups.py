"""Consumer groups during rebalances, and when the broker is replaced by an empty one."""

import asyncio
import time
from collections import Counter

from deploy.local import servers
from shared.contracts.topics import Topic
from shared.messaging.cloudevents import Envelope
from shared.messaging.cluster_watch import ClusterWatch
from shared.messaging.consume.batch_runner import BatchRunner
from shared.messaging.errors import PublishFailed
from shared.messaging.publish.producer import EventProducer
from shared.messaging.topics import create_topics
from tests.component.messaging_setup import (
    Ended,
    Parcel,
    committed,
    created,
    number_of,
    own_topic,
    send,
    settings_for,
    stage,
    started_producer,
)
from tests.conftest import eventually


async def test_a_fifth_member_of_four_partitions_stays_healthy(kafka_servers: str) -> None:
    settings = settings_for(kafka_servers, stage_stall_seconds=2)
    topic = await created(settings, own_topic())
    producer = await started_producer(settings)
    ended, seen = Ended(), Counter[int]()

    async def note(envelope: Envelope) -> None:
        seen[number_of(envelope)] += 1

    members = [stage(settings, topic, producer, note, telemetry=ended) for _ in range(5)]
    await asyncio.gather(*(member.start() for member in members))

    async def spread() -> bool:
        shares = sorted(len(member._reader.partitions) for member in members)
        return shares == [0, 1, 1, 1, 1] and all(member._reader.joined for member in members)

    await eventually(spread, 20)
    await send(producer, topic, range(100))

    async def all_seen() -> bool:
        return len(seen) == 100

    await eventually(all_seen, 10)
    await asyncio.sleep(3)  # longer than the stall limit, with a member that has nothing to do
    for member in members:
        await member.check()
    assert ended.reasons == []
    await asyncio.gather(*(member.stop(1) for member in members))
    assert await committed(settings, topic) == 100
    await producer.stop(1)


async def test_a_rebalance_waits_briefly_for_a_slow_handler_whose_late_finish_does_not_commit(
    kafka_servers: str,
) -> None:
    settings = settings_for(kafka_servers)
    topic = await created(settings, own_topic(partitions=2))
    producer = await started_producer(settings)
    release, seen = asyncio.Event(), Counter[int]()

    async def slow(envelope: Envelope) -> None:
        seen[number_of(envelope)] += 1
        await release.wait()

    async def quick(envelope: Envelope) -> None:
        seen[number_of(envelope)] += 1

    first = stage(settings, topic, producer, slow)
    await first.start()
    await send(producer, topic, range(10))

    async def in_work() -> bool:
        return first._in_flight == 10

    await eventually(in_work, 10)
    before = tuple(first._reader.partitions.values())
    second = stage(settings, topic, producer, quick)
    await second.start()

    async def shared() -> bool:
        return len(first._reader.partitions) == 1 and len(second._reader.partitions) == 1

    await eventually(shared, 10)
    assert not any(partition.active for partition in before)
    (moved,) = second._reader.partitions.values()

    async def repeated_by_the_second() -> bool:
        return await committed(settings, topic) == moved.tracker.last + 1 > 0

    await eventually(repeated_by_the_second, 10)
    twice = {number for number, times in seen.items() if times == 2}
    assert len(twice) == moved.tracker.last + 1  # those kept by the first are in progress there and not started again
    release.set()

    async def all_committed() -> bool:
        return await committed(settings, topic) == 10

    await eventually(all_committed, 10)
    assert {number for number, times in seen.items() if times == 2} == twice
    assert all(partition.to_commit() is None for partition in before)
    await asyncio.gather(first.stop(2), second.stop(2))
    await producer.stop(1)


async def test_a_batch_consumer_reads_the_new_log_from_its_start() -> None:
    broker = await servers.start_tansu(cluster_id="first-log")
    port = broker.port
    settings = settings_for(broker.url)
    topic = await created(settings, own_topic())
    producer = await started_producer(settings)
    seen, ended = list[int](), Ended()

    async def note(envelopes: list[Envelope]) -> None:
        seen.extend(map(number_of, envelopes))

    runner = BatchRunner(
        settings=settings, topics=(topic,), group="tests", handler=note, producer=producer, telemetry=ended
    )
    await runner.start()
    await send(producer, topic, range(20))

    async def read(numbers: set[int]) -> bool:
        return numbers <= set(seen)

    await eventually(lambda: read(set(range(20))), 10)
    await broker.kill()
    broker = await servers.start_tansu(port, cluster_id="second-log")
    await create_topics(settings, (topic,))
    for number in range(100, 160):
        await eventually(lambda number=number: sent(producer, topic, number), 20)  # type: ignore[misc]
    await eventually(lambda: read(set(range(100, 160))), 20)
    assert ended.reasons == []
    await runner.stop(2)
    await producer.stop(1)
    await broker.stop()


async def sent(producer: EventProducer, topic: Topic, number: int) -> bool:
    try:
        await producer.publish(topic, str(number), Parcel(number=number))
    except PublishFailed:
        return False
    return True


async def test_after_the_broker_is_replaced_all_new_records_are_read() -> None:
    broker = await servers.start_tansu(cluster_id="first-log")
    port = broker.port
    settings = settings_for(broker.url)
    topic = await created(settings, own_topic())
    producer = await started_producer(settings)
    seen, changes, ended = set[int](), list[tuple[str, str]](), Ended()

    async def note(envelope: Envelope) -> None:
        await asyncio.sleep(0.01)
        seen.add(number_of(envelope))

    async def changed(old: str, new: str) -> None:
        changes.append((old, new))

    watch = ClusterWatch(settings, changed, every_seconds=0.2)
    members = [stage(settings, topic, producer, note, telemetry=ended) for _ in range(2)]
    await asyncio.gather(watch.start(), *(member.start() for member in members))
    sent, sending = 0, True

    async def keep_sending() -> None:
        nonlocal sent
        while sending:
            try:
                await producer.publish(topic, str(sent), Parcel(number=sent))
            except PublishFailed:
                await asyncio.sleep(0.1)
                continue
            sent += 1

    load = asyncio.create_task(keep_sending())

    async def flowing() -> bool:
        return len(seen) > 300

    await eventually(flowing, 20)
    await broker.kill()
    broker = await servers.start_tansu(port, cluster_id="second-log")
    await create_topics(settings, (topic,))
    first_since, restarted = sent + 1, time.monotonic()

    async def much_since() -> bool:
        return sent > first_since + 2000  # beyond every old offset, which would be valid again

    await eventually(much_since, 40)
    sending = False
    await load

    async def nothing_missed() -> bool:
        return set(range(first_since, sent)) <= seen

    await eventually(nothing_missed, 30)
    assert time.monotonic() - restarted < 45
    assert changes == [("first-log", "second-log")]
    assert ended.reasons == []
    await asyncio.gather(*(member.stop(2) for member in members))
    await watch.stop(1)
    await producer.stop(1)
    await broker.stop()
