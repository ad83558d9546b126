"""A member of a consumer group: joins, reads, commits what is finished, and gives up what is revoked."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.structs import OffsetAndMetadata

from shared.messaging.connection import group_options, make_consumer
from shared.messaging.consume.work import Partition
from shared.messaging.settings import KafkaSettings
from shared.observability.logs import get_logger

# ruff: noqa: SLF001


NO_GENERATION = -1


def generation_of(consumer: AIOKafkaConsumer) -> int:
    """The group's generation that this member belongs to; NO_GENERATION while it belongs to none."""
    coordinator: Any = consumer._coordinator
    return coordinator.generation if coordinator is not None else NO_GENERATION


def rejoin(consumer: AIOKafkaConsumer) -> None:
    """Has the member join anew, under its id where the broker still knows it."""
    coordinator: Any = consumer._coordinator
    if coordinator is not None:
        coordinator.request_rejoin()


async def commit_once(
    consumer: AIOKafkaConsumer, generation: int, offsets: Mapping[TopicPartition, int], log_id: str = ""
) -> bool:
    """Commits as a member of `generation`; False, and nothing sent, when the member has left that generation.

    `log_id` says which log the offsets are of; it is kept with them for `offsets_of_log`.

    `consumer.commit` will not do. It waits and retries as long as there is no coordinator, and by then the member may
    have lost its generation: the commit then goes out as one of no member at all, which a broker with an empty log
    accepts, and the new log would be read from an offset of the old one. Raises KafkaError.
    """
    coordinator: Any = consumer._coordinator
    if generation == NO_GENERATION or coordinator.generation != generation or coordinator.coordinator_id is None:
        return False
    commit = {partition: OffsetAndMetadata(offset, log_id) for partition, offset in offsets.items()}
    await coordinator._do_commit_offsets(None, commit)
    return True


async def offsets_of_log(
    consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition], log_id: str
) -> dict[TopicPartition, int]:
    """Where to go on in each partition: at the committed offset, or at the beginning when there is none of this log.

    A member that has not noticed yet that its broker was replaced can commit an offset of the old log to the new one.
    On Apache Kafka that offset carries the old log's id. One without an id counts: it was set by an operator's tool, or
    the broker keeps none, as the embedded one, which takes no commits of members that it does not know. Raises
    KafkaError.
    """
    coordinator: Any = consumer._coordinator
    committed = await coordinator.fetch_committed_offsets(list(partitions))
    beginnings = await consumer.beginning_offsets(list(partitions))
    return {
        partition: found.offset
        if (found := committed.get(partition)) is not None and found.offset >= 0 and found.metadata in ("", log_id)
        else beginnings[partition]
        for partition in partitions
    }


async def leave_first_generation(consumer: AIOKafkaConsumer) -> None:
    """Leaves a group whose generation is 0, which aiokafka takes for no membership and would leave to time out."""
    coordinator: Any = consumer._coordinator
    if coordinator is None or coordinator.generation != 0 or coordinator._group_instance_id is not None:
        return
    try:
        await coordinator._send_req(LeaveGroupRequest(coordinator.group_id, coordinator.member_id))
    except KafkaError:
        return  # The session time-out ends the membership.


FETCH_BYTES = 2 * 1024 * 1024
_STOP_WITHIN_SECONDS = 5.0
_START_WITHIN_SECONDS = 20.0
_COMMIT_WITHIN_SECONDS = 5.0
_ASSIGN_WITHIN_SECONDS = 10.0
_REBALANCING_POLL_SECONDS = 5.0

log = get_logger(__name__)

OnRevoked = Callable[[Collection[Partition]], Awaitable[None]]
Batch = Iterable[tuple[Partition, Sequence[ConsumerRecord]]]


class GroupReader:
    """Reads `topics` as a member of `group`. `on_revoked` gets what is about to be let go and may wait for it a little.

    Each assignment has a generation and new Partition objects, so nothing of an earlier one can be committed in it.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        topics: Collection[str],
        group: str,
        on_revoked: OnRevoked,
        ask_log_id: Callable[[], Awaitable[str]],
    ) -> None:
        self._settings = settings
        self._topics = sorted(topics)
        self._group = group
        self._on_revoked = on_revoked
        self._ask_log_id = ask_log_id
        self._log_id = ""
        self._consumer: AIOKafkaConsumer | None = None
        self._generation = NO_GENERATION
        self.partitions: dict[TopicPartition, Partition] = {}
        self.joined_once = False
        self.last_joined = 0.0

    @property
    def joined(self) -> bool:
        """Whether this member belongs to the group's current generation, with partitions or without."""
        consumer = self._consumer
        if consumer is None or self._generation == NO_GENERATION:
            return False
        return generation_of(consumer) == self._generation

    async def start(self) -> None:
        """Connects and begins to join; does not wait for the group. Raises KafkaError, OSError or TimeoutError."""
        # A fetch gives at least one record, however large: the limit is about memory, not about what can be read.
        consumer = make_consumer(
            self._settings, max_partition_fetch_bytes=FETCH_BYTES, **group_options(self._settings, self._group)
        )
        try:
            async with asyncio.timeout(_START_WITHIN_SECONDS):
                await consumer.start()
        except BaseException:
            await _close(consumer)
            raise
        self._consumer = consumer
        consumer.subscribe(self._topics, listener=_Listener(self, consumer))

    async def stop(self) -> None:
        """Leaves the group without a commit. Call `commit` first."""
        consumer, self._consumer = self._consumer, None
        self.let_go()
        if consumer is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(leave_first_generation(consumer), _STOP_WITHIN_SECONDS)
            await _close(consumer)

    def let_go(self) -> None:
        """From now on nothing of the present assignment is committed."""
        for partition in self.partitions.values():
            partition.active = False
        self.partitions = {}
        self._generation = NO_GENERATION

    def forget_log(self) -> None:
        """The log is gone: nothing of it is committed, and the member joins anew to read the new one from its start.

        A fresh client would not do: one that is stopped in the middle of joining leaves a member behind, which the
        broker may take for the group's leader and wait for.
        """
        self.let_go()
        if self._consumer is not None:
            rejoin(self._consumer)

    async def poll(self, max_records: int, wait_seconds: float) -> Batch:
        """What is there to read, at most `max_records`, after at most `wait_seconds` (longer while rebalancing).

        Raises KafkaError when the membership or the log has a problem.
        """
        consumer = self._consumer
        if consumer is None:
            await asyncio.sleep(wait_seconds)
            return ()
        try:
            async with asyncio.timeout(wait_seconds + _REBALANCING_POLL_SECONDS):
                fetched: Mapping[TopicPartition, list[ConsumerRecord]] = await consumer.getmany(
                    timeout_ms=int(wait_seconds * 1000), max_records=max_records
                )
        except TimeoutError:
            return ()
        partitions = self.partitions
        return [(partitions[found], records) for found, records in fetched.items() if found in partitions]

    def begin_again(self, partition: Partition) -> Partition:
        """Replaces a partition whose log goes on from an earlier offset: what is in work there commits nothing."""
        partition.active = False
        fresh = Partition(partition.topic_partition)
        self.partitions[fresh.topic_partition] = fresh
        log.warning("log_went_back", topic=fresh.topic_partition.topic, partition=fresh.topic_partition.partition)
        return fresh

    def pause(self, partitions: Iterable[Partition]) -> None:
        if self._consumer is not None:
            self._consumer.pause(*self._assigned(partitions))

    def resume(self, partitions: Iterable[Partition]) -> None:
        if self._consumer is not None:
            self._consumer.resume(*self._assigned(partitions))

    async def commit(self) -> bool:
        """Commits the lowest unfinished offset of each partition where it has moved; False when that did not work."""
        consumer = self._consumer
        moved = {p: offset for p in self.partitions.values() if (offset := p.to_commit()) is not None}
        if consumer is None or not moved:
            return not moved
        offsets = {partition.topic_partition: offset for partition, offset in moved.items()}
        try:
            async with asyncio.timeout(_COMMIT_WITHIN_SECONDS):
                if not await commit_once(consumer, self._generation, offsets, self._log_id):
                    return False
        except (KafkaError, OSError, TimeoutError) as error:
            log.warning("offsets_not_committed", group=self._group, error=type(error).__name__)
            return False
        for partition, offset in moved.items():
            partition.committed = offset
        return True

    def lag(self) -> dict[TopicPartition, int]:
        """Records from the lowest unfinished one to the end of the log, as of the last fetch of each partition."""
        found: dict[TopicPartition, int] = {}
        for partition in self.partitions.values():
            end = self._end_of(partition)
            if end is not None:
                done = partition.tracker.committable
                found[partition.topic_partition] = max(0, end - done) if done is not None else 0
        return found

    def _end_of(self, partition: Partition) -> int | None:
        if self._consumer is None or not self._assigned((partition,)):
            return None
        end: int | None = self._consumer.highwater(partition.topic_partition)
        return end

    async def records_waiting(self, within_seconds: float) -> bool:
        """Whether the log goes on after what was read, for a partition that is not paused. Asks the broker.

        Raises KafkaError, OSError or TimeoutError when it does not answer.
        """
        consumer = self._consumer
        if consumer is None:
            return False
        watched = self._assigned(partition for partition in self.partitions.values() if not partition.full)
        async with asyncio.timeout(within_seconds):
            ends = await consumer.end_offsets(watched) if watched else {}
            return any([ends[found] > await consumer.position(found) for found in ends])

    def _assigned(self, partitions: Iterable[Partition]) -> list[TopicPartition]:
        assignment = self._consumer.assignment() if self._consumer is not None else frozenset()
        return [p.topic_partition for p in partitions if p.active and p.topic_partition in assignment]

    async def revoked(self, consumer: AIOKafkaConsumer) -> None:
        """The group is about to rebalance: all partitions go, what comes back is assigned anew."""
        if consumer is not self._consumer:
            return
        if self.partitions:
            await self._on_revoked(tuple(self.partitions.values()))
            await self.commit()
        self.let_go()

    async def assigned(self, consumer: AIOKafkaConsumer, assigned: Collection[TopicPartition]) -> None:
        if self._consumer is None or consumer is not self._consumer:
            return
        try:
            async with asyncio.timeout(_ASSIGN_WITHIN_SECONDS):
                log_id = await self._ask_log_id()
                starts = await offsets_of_log(consumer, assigned, log_id)
        except (KafkaError, OSError, TimeoutError) as error:
            log.warning("assignment_not_begun", group=self._group, error=type(error).__name__)
            rejoin(consumer)
            return
        self._log_id = log_id
        # From here to the end nothing is awaited: what was fetched before this moment is read again, none is skipped.
        for found, offset in starts.items():
            consumer.seek(found, offset)
        self.let_go()
        self._generation = generation_of(consumer)
        self.partitions = {found: Partition(found) for found in assigned}
        self.joined_once, self.last_joined = True, time.monotonic()
        log.info("partitions_assigned", group=self._group, partitions=len(self.partitions))


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Tells the reader which of its consumers speaks, since a replaced one may still call."""

    def __init__(self, reader: GroupReader, consumer: AIOKafkaConsumer) -> None:
        self._reader = reader
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        await self._reader.revoked(self._consumer)

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        await self._reader.assigned(self._consumer, assigned)


async def _close(consumer: AIOKafkaConsumer) -> None:
    try:
        await asyncio.wait_for(consumer.stop(), _STOP_WITHIN_SECONDS)
    except (KafkaError, OSError, TimeoutError) as error:
        log.warning("consumer_not_closed", error=type(error).__name__)
