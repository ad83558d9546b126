"""Reads topics as a member of a consumer group and commits only offsets below the lowest unfinished record."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from shared.messaging.connection import group_options, make_consumer
from shared.messaging.consume.group_membership import (
    NO_GENERATION,
    commit_once,
    generation_of,
    leave_first_generation,
    offsets_of_log,
    rejoin,
)
from shared.messaging.consume.work import Partition
from shared.messaging.settings import KafkaSettings
from shared.observability.logs import get_logger

FETCH_BYTES = 2 * 1024 * 1024
_STOP_WITHIN_SECONDS = 5.0
_START_WITHIN_SECONDS = 20.0
_COMMIT_WITHIN_SECONDS = 5.0
_ASSIGN_WITHIN_SECONDS = 10.0
_REBALANCING_POLL_SECONDS = 5.0

OnRevoked = Callable[[Collection[Partition]], Awaitable[None]]
Batch = Iterable[tuple[Partition, Sequence[ConsumerRecord]]]

log = get_logger(__name__)


class GroupReader:
    """A member of `group` that reads `topic`.

    `on_revoked` is awaited before partitions are given up. `ask_log_id` returns the id of the broker's current log and
    raises KafkaError, OSError or TimeoutError. Each assignment has its own generation and Partition objects, so nothing
    of an earlier assignment can be committed.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        topic: str,
        group: str,
        on_revoked: OnRevoked,
        ask_log_id: Callable[[], Awaitable[str]],
    ) -> None:
        self._settings = settings
        self._topic = topic
        self._group = group
        self._on_revoked = on_revoked
        self._ask_log_id = ask_log_id
        self._log_id = ""
        self._consumer: AIOKafkaConsumer | None = None
        self._generation = NO_GENERATION
        self.partitions: dict[TopicPartition, Partition] = {}
        self.last_joined: float | None = None

    @property
    def joined(self) -> bool:
        """Whether this is a member of the group's current generation, with or without partitions."""
        consumer = self._consumer
        if consumer is None or self._generation == NO_GENERATION:
            return False
        return generation_of(consumer) == self._generation

    async def start(self) -> None:
        """Connects and starts to join, without waiting for the group. Raises KafkaError, OSError or TimeoutError."""
        # Limits memory only: a fetch returns at least one record, however large.
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
        consumer.subscribe([self._topic], listener=_Listener(self, consumer))

    async def stop(self) -> None:
        """Leaves the group without a commit: call `commit` first."""
        consumer, self._consumer = self._consumer, None
        self._drop_assignment()
        if consumer is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(leave_first_generation(consumer), _STOP_WITHIN_SECONDS)
            await _close(consumer)

    def restart_on_new_log(self) -> None:
        """Drops the assignment and rejoins, to read a new log from its beginning.

        Keeps the client: one that is stopped while it joins leaves a member behind, which the broker may choose as the
        group's leader and wait for.
        """
        self._drop_assignment()
        if self._consumer is not None:
            rejoin(self._consumer)

    async def poll(self, max_records: int, wait_seconds: float) -> Batch:
        """Returns up to `max_records` records within `wait_seconds`, or up to 5 s more during a rebalance.

        Raises KafkaError.
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

    def restart_partition(self, partition: Partition) -> Partition:
        """Replaces a partition whose log continues at a lower offset, so that its records in progress do not commit."""
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

    async def commit(self) -> None:
        """Commits the lowest unfinished offset of each partition where it has moved. Does not raise."""
        consumer = self._consumer
        moved = {p: offset for p in self.partitions.values() if (offset := p.to_commit()) is not None}
        if consumer is None or not moved:
            return
        offsets = {partition.topic_partition: offset for partition, offset in moved.items()}
        try:
            async with asyncio.timeout(_COMMIT_WITHIN_SECONDS):
                if not await commit_once(consumer, self._generation, offsets, self._log_id):
                    return
        except (KafkaError, OSError, TimeoutError) as error:
            log.warning("offsets_not_committed", group=self._group, error=type(error).__name__)
            return
        for partition, offset in moved.items():
            partition.committed = offset

    def lag(self) -> dict[TopicPartition, int]:
        """By partition, the records from the lowest unfinished one to the end of the log as of the last fetch."""
        found: dict[TopicPartition, int] = {}
        for partition in self.partitions.values():
            end = self._end_of(partition)
            if end is not None:
                done = partition.tracker.committable
                found[partition.topic_partition] = max(0, end - done) if done is not None else 0
        return found

    async def records_waiting(self, within_seconds: float) -> bool:
        """Whether a partition that is not full has unread records. Raises KafkaError, OSError or TimeoutError."""
        consumer = self._consumer
        if consumer is None:
            return False
        watched = self._assigned(partition for partition in self.partitions.values() if not partition.full)
        async with asyncio.timeout(within_seconds):
            ends = await consumer.end_offsets(watched) if watched else {}
            return any([ends[found] > await consumer.position(found) for found in ends])

    async def revoked(self, consumer: AIOKafkaConsumer) -> None:
        """Called before a rebalance, which revokes all partitions; those kept are assigned again."""
        if consumer is not self._consumer:
            return
        if self.partitions:
            await self._on_revoked(tuple(self.partitions.values()))
            await self.commit()
        self._drop_assignment()

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
        # No await from here on: otherwise records could be fetched between the seek and the new assignment.
        for found, offset in starts.items():
            consumer.seek(found, offset)
        self._drop_assignment()
        self._generation = generation_of(consumer)
        self.partitions = {found: Partition(found) for found in assigned}
        self.last_joined = time.monotonic()
        log.info("partitions_assigned", group=self._group, partitions=len(self.partitions))

    def _drop_assignment(self) -> None:
        """Ends the current assignment: nothing of it is committed from now on."""
        for partition in self.partitions.values():
            partition.active = False
        self.partitions = {}
        self._generation = NO_GENERATION

    def _end_of(self, partition: Partition) -> int | None:
        if self._consumer is None or not self._assigned((partition,)):
            return None
        end: int | None = self._consumer.highwater(partition.topic_partition)
        return end

    def _assigned(self, partitions: Iterable[Partition]) -> list[TopicPartition]:
        assignment = self._consumer.assignment() if self._consumer is not None else frozenset()
        return [p.topic_partition for p in partitions if p.active and p.topic_partition in assignment]


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Passes the consumer along with each callback, since a replaced consumer may still call back."""

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
