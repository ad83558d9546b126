"""Runs a handler for every message of a topic: hundreds concurrently, committed up to the lowest unfinished one."""

import asyncio
import contextlib
import time
from collections.abc import Collection, Coroutine
from typing import Any

from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaError

from shared.contracts.topics import Topic, dead_letter_topic
from shared.messaging.cluster_watch import ClusterWatch
from shared.messaging.consume.delivery import Abandoned, Delivery, GiveUp, Handler
from shared.messaging.consume.group_membership import REVOKE_WAIT_SECONDS, check_membership
from shared.messaging.consume.group_reader import GroupReader
from shared.messaging.consume.measuring import GatheredLatency, LagGauge
from shared.messaging.consume.stall_watch import EndsProcess, StallWatch
from shared.messaging.consume.work import CarriedOver, Partition, Work
from shared.messaging.publish.dead_letters import DeadLetters
from shared.messaging.publish.producer import EventProducer
from shared.messaging.settings import KafkaSettings
from shared.messaging.topics import create_topics
from shared.observability.logs import get_logger
from shared.observability.metrics import IN_FLIGHT, STAGE_LATENCY

_COMMIT_EVERY_SECONDS = 0.15
_CANCEL_EVERY_SECONDS = 0.25
_CHECK_EVERY_SECONDS = 2.0
_POLL_SECONDS = 0.5
_BATCH_SECONDS = 0.05
_PAUSE_AFTER_ERROR_SECONDS = 0.5
_ERRORS_UNTIL_RESTART = 3
_CONNECT_WITHIN_SECONDS = 30.0

log = get_logger(__name__)


class StageRunner:
    """Runs `handler` for every message of `topic`, each in its own task. Component.

    - Up to `concurrency` messages are in progress in this process, however few partitions it has. Messages with the
      same key may run concurrently and finish in any order.
    - A message is delivered at least once. Its offset is committed when all before it are finished. A partition is
      paused at `stage_max_uncommitted` records above its committed offset.
    - `handler` raises Transient to be retried with backoff until the message's deadline or, without one, for
      `stage_retry_budget_seconds`; Unprocessable to have the message dead-lettered at once. Other errors are retried
      twice, then the message is dead-lettered. A handler that runs past the deadline is cancelled.
    - `give_up` is called for messages that the handler could not finish, and for those that arrive after their
      deadline.
    - `stop` stops reading, lets messages in progress finish within the grace period, commits and leaves the group.
    """

    def __init__(
        self,
        *,
        settings: KafkaSettings,
        topic: Topic,
        group: str,
        handler: Handler,
        give_up: GiveUp | None,
        producer: EventProducer,
        telemetry: EndsProcess,
        concurrency: int | None = None,
    ) -> None:
        self._settings = settings
        self._topic = topic
        self._group = group
        self._telemetry = telemetry
        self._concurrency = concurrency or settings.stage_concurrency
        self._batch = max(1, self._concurrency // 8)
        self._delivery = Delivery(
            settings=settings,
            topic=topic,
            handler=handler,
            give_up=give_up,
            dead_letters=DeadLetters(topic, producer),
        )
        self._cluster = ClusterWatch(settings, self._on_new_log)
        self._reader = GroupReader(settings, topic.name, group, self._await_revoked, self._cluster.ask)
        self._stall = StallWatch(self._reader, self._cluster, settings.stage_stall_seconds)
        self._in_flight = 0
        self._in_flight_with_room = 0
        self._works: dict[asyncio.Task[None], Work] = {}
        self._carried = CarriedOver()
        self._lag = LagGauge()
        self._loops: list[asyncio.Task[None]] = []
        self._reading: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        self._finished = asyncio.Event()
        self._stopping = False
        self._latency = GatheredLatency(STAGE_LATENCY, topic=topic.name)

    async def start(self) -> None:
        """Connects and starts to join the group. Raises KafkaError, OSError or TimeoutError after 30 s."""
        IN_FLIGHT.labels(topic=self._topic.name).set_function(lambda: self._in_flight)
        await self._connect()
        await self._cluster.start()
        self._reading = self._loop(self._read())
        self._loops = [
            self._loop(self._every(_COMMIT_EVERY_SECONDS, self._commit)),
            self._loop(self._every(_CANCEL_EVERY_SECONDS, self._cancel_overdue)),
            self._loop(self._every(_CHECK_EVERY_SECONDS, self._check_stall)),
        ]

    async def stop(self, grace_seconds: float) -> None:
        """Lets messages finish for up to `grace_seconds`. Those that do not are delivered again."""
        self._stopping = True
        await _cancel([self._reading] if self._reading else [])
        if self._works:
            await asyncio.wait(tuple(self._works), timeout=grace_seconds)
        await self._cluster.stop(grace_seconds)
        unfinished = tuple(self._works)
        await _cancel([*self._loops, *unfinished])
        await self._commit()
        await self._reader.stop()
        log.info("stage_stopped", topic=self._topic.name, unfinished=len(unfinished))

    async def check(self) -> None:
        """Readiness check: raises NotReading while it is not a member of its group."""
        check_membership(self._reader.joined, self._reader.last_joined, self._settings.stage_stall_seconds)

    async def _connect(self) -> None:
        deadline = time.monotonic() + _CONNECT_WITHIN_SECONDS
        while True:
            try:
                await self._reader.start()
                return
            except (KafkaError, OSError, TimeoutError):
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_PAUSE_AFTER_ERROR_SECONDS)

    async def _on_new_log(self, old: str, new: str) -> None:
        """Restarts on a new log. Messages in progress came from the old one and are not committed."""
        self._reader.restart_on_new_log()
        self._carried.clear()
        await create_topics(self._settings, (self._topic, dead_letter_topic(self._topic)))

    async def _read(self) -> None:
        errors = 0
        while True:
            try:
                await self._read_some()
                errors = 0
            except KafkaError as error:
                errors += 1
                log.warning("poll_failed", topic=self._topic.name, error=type(error).__name__, errors=errors)
                await asyncio.sleep(_PAUSE_AFTER_ERROR_SECONDS)
                if errors % _ERRORS_UNTIL_RESTART == 0:
                    with contextlib.suppress(KafkaError, OSError, TimeoutError):
                        await self._reader.stop()
                        await self._connect()

    async def _read_some(self) -> None:
        free = self._concurrency - self._in_flight
        if free <= 0:
            await self._wait_for_room()
            return
        for partition, records in await self._reader.poll(free, _POLL_SECONDS):
            self._stall.moved()
            for record in records:
                self._begin(partition, record)
            if partition.tracker.span >= self._settings.stage_max_uncommitted:
                partition.full = True
                self._reader.pause((partition,))
        # A poll that returns records at once does not suspend; this lets the new tasks start.
        await asyncio.sleep(0)

    async def _wait_for_room(self) -> None:
        """Returns when messages can be read again.

        Waits briefly for room for a batch, which is efficient for fast handlers, then for room for one message. A long
        wait pauses all partitions and keeps polling: this bounds prefetched data and keeps the membership alive.
        """
        if await self._room_within(_BATCH_SECONDS, self._batch) or await self._room_within(_POLL_SECONDS, 1):
            return
        while True:
            paused = tuple(self._reader.partitions.values())
            self._reader.pause(paused)
            for partition, records in await self._reader.poll(1, 0.0):
                for record in records:
                    self._begin(partition, record)
            self._stall.moved()
            if await self._room_within(_POLL_SECONDS, 1):
                break
        self._reader.resume(partition for partition in paused if not partition.full)

    async def _room_within(self, seconds: float, messages: int) -> bool:
        """Waits up to `seconds` for room for that many messages. Returns whether there is room for any."""
        self._room.clear()
        self._in_flight_with_room = self._concurrency - messages
        if self._in_flight > self._in_flight_with_room:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._room.wait()
        return self._in_flight < self._concurrency

    def _begin(self, partition: Partition, record: ConsumerRecord) -> None:
        if record.offset <= partition.tracker.last:
            partition = self._reader.restart_partition(partition)
        if self._carried.resume(partition, record):
            return
        partition.tracker.begin(record.offset)
        partition.in_flight += 1
        self._in_flight += 1
        work = Work(partition, record)
        self._works[asyncio.create_task(self._process(work))] = work

    async def _process(self, work: Work) -> None:
        started, finished = time.perf_counter(), False
        try:
            await self._delivery.deliver(work)
            work.partition.tracker.finish(work.record.offset)
            finished = True
        except Abandoned:
            pass
        except Exception as error:
            # A fault in the runner, not in the message. Its offset would never be committed, so the process must end.
            log.critical("delivery_ended", topic=self._topic.name, exc_info=error)
            self._telemetry.fatal(f"{self._group}: {type(error).__name__} while processing a message")
        finally:
            del self._works[asyncio.current_task()]  # type: ignore[arg-type]
            if work.abandoned:
                self._carried.ended(work, finished)
            self._release(work.partition)
        self._latency.observe(time.perf_counter() - started)

    def _release(self, partition: Partition) -> None:
        self._in_flight -= 1
        partition.in_flight -= 1
        self._stall.moved()
        if self._in_flight <= self._in_flight_with_room:
            self._room.set()
        if not partition.in_flight:
            self._finished.set()
        if partition.full and partition.tracker.span <= self._settings.stage_max_uncommitted * 3 // 4:
            partition.full = False
            self._reader.resume((partition,))

    async def _await_revoked(self, revoked: Collection[Partition]) -> None:
        """Waits up to 1.5 s for the messages of `revoked`, while the whole group waits for this member."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REVOKE_WAIT_SECONDS):
                while any(partition.in_flight for partition in revoked):
                    self._finished.clear()
                    await self._finished.wait()
        self._carried.revoked(self._works.values())

    async def _commit(self) -> None:
        self._latency.flush()
        await self._reader.commit()

    async def _cancel_overdue(self) -> None:
        self._delivery.cancel_overdue()

    async def _check_stall(self) -> None:
        self._lag.report(self._reader.lag())
        reason = await self._stall.check()
        if reason is not None and not self._stopping:
            self._telemetry.fatal(f"{self._group}: {reason}")

    async def _every(self, seconds: float, action: Any) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await action()
            except Exception:
                log.exception("background_step_failed", topic=self._topic.name)

    def _loop(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name=f"{self._group} background")
        task.add_done_callback(self._on_loop_end)
        return task

    def _on_loop_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.critical("reading_ended", topic=self._topic.name, exc_info=task.exception())
            self._telemetry.fatal(f"{self._group}: {task.get_name()} ended with {type(task.exception()).__name__}")


async def _cancel(tasks: Collection[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=5.0)
