"""Reads a stage's inbox: many messages at once, committed only up to the lowest unfinished one."""

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
from shared.messaging.consume.group_reader import GroupReader
from shared.messaging.consume.measuring import GatheredLatency, LagGauge
from shared.messaging.consume.stall_watch import EndsProcess, StallWatch
from shared.messaging.consume.work import CarriedOver, Partition, Work
from shared.messaging.errors import NotReading
from shared.messaging.publish.dead_letters import DeadLetters
from shared.messaging.publish.producer import EventProducer
from shared.messaging.settings import KafkaSettings
from shared.messaging.topics import create_topics
from shared.observability.logs import get_logger
from shared.observability.metrics import IN_FLIGHT, STAGE_LATENCY

REVOKE_WAIT_SECONDS = 1.5
_COMMIT_EVERY_SECONDS = 0.15
_CUT_EVERY_SECONDS = 0.25
_LOOK_EVERY_SECONDS = 2.0
_POLL_SECONDS = 0.5
_BATCH_SECONDS = 0.05
_PAUSE_AFTER_ERROR_SECONDS = 0.5
_ERRORS_UNTIL_RESTART = 3
_CONNECT_WITHIN_SECONDS = 30.0

log = get_logger(__name__)


class StageRunner:
    """Runs `handler` for every message of `topic`, each in a task of its own; a Component.

    - Up to `concurrency` messages are in work in this process, however few partitions there are. Messages of one key
      may run at the same time and end in any order: keyed order is NOT promised.
    - A message is delivered at least once. Its offset is committed when everything before it is finished too. At most
      `stage_max_uncommitted` records of a partition stand above the committed one, plus what is in work.
    - `handler` raises Transient to be called again, with backoff, until the message's deadline or, without one, for
      `stage_retry_budget_seconds`; Unprocessable to have the message dead-lettered at once. Anything else is tried
      three times, then dead-lettered. A handler still at work at the deadline is cancelled.
    - `give_up` gets what the handler could not finish, and at once what arrives after its deadline.
    - `stop` ends reading, lets the messages in work finish within the grace period, commits and leaves the group.
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
        self._reader = GroupReader(settings, (topic.name,), group, self._settle_revoked, self._cluster.ask)
        self._stall = StallWatch(self._reader, self._cluster, settings.stage_stall_seconds)
        self._in_flight = 0
        self._enough_in_flight = 0
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
        """Connects and begins to join its group. Raises the client's error when no broker answers for 30 s."""
        IN_FLIGHT.labels(topic=self._topic.name).set_function(lambda: self._in_flight)
        await self._connect()
        await self._cluster.start()
        self._reading = self._loop(self._read())
        self._loops = [
            self._loop(self._every(_COMMIT_EVERY_SECONDS, self._commit)),
            self._loop(self._every(_CUT_EVERY_SECONDS, self._cut_overdue)),
            self._loop(self._every(_LOOK_EVERY_SECONDS, self._look)),
        ]

    async def stop(self, grace_seconds: float) -> None:
        """Drains for up to `grace_seconds`; what is not finished then is delivered again to somebody."""
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
        """For readiness: raises NotReading unless the group was joined (partitions or not) and still is.

        A rebalance is part of normal life and does not make the process unready.
        """
        if not self._reader.joined_once:
            raise NotReading("has not joined its group yet")
        if not self._reader.joined and time.monotonic() - self._reader.last_joined > self._settings.stage_stall_seconds:
            raise NotReading("is not in its group")

    @property
    def in_flight(self) -> int:
        """Messages in work now."""
        return self._in_flight

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
        """Nothing of the messages in work is committed: the log that they came from is gone."""
        self._reader.forget_log()
        self._carried.forget()
        await create_topics(self._settings, (self._topic, dead_letter_topic(self._topic)))

    async def _connect_anew(self) -> None:
        await self._reader.stop()
        await self._connect()

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
                        await self._connect_anew()

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
        # A poll that finds records does not suspend: the tasks just begun get their turn here.
        await asyncio.sleep(0)

    async def _wait_for_room(self) -> None:
        """Quick work is read in batches; slow work would leave places empty meanwhile, so any place will do for it.

        A long wait pauses all partitions, drops what is prefetched and keeps polling, so that memory stays bounded and
        the group still sees a live member.
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

    async def _room_within(self, seconds: float, places: int) -> bool:
        """Waits until so many places are free, at most for `seconds`; tells whether any is."""
        self._room.clear()
        self._enough_in_flight = self._concurrency - places
        if self._in_flight > self._enough_in_flight:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._room.wait()
        return self._in_flight < self._concurrency

    def _begin(self, partition: Partition, record: ConsumerRecord) -> None:
        if record.offset <= partition.tracker.last:
            partition = self._reader.begin_again(partition)
        if self._carried.resume(partition, record):
            return
        partition.tracker.begin(record.offset)
        partition.in_flight += 1
        self._in_flight += 1
        work = Work(partition, record)
        self._works[asyncio.create_task(self._see_to(work))] = work

    async def _see_to(self, work: Work) -> None:
        started, finished = time.perf_counter(), False
        try:
            await self._delivery.deliver(work)
            work.partition.tracker.finish(work.record.offset)
            finished = True
        except Abandoned:
            pass
        except Exception as error:
            # Nothing that a message holds gets here. Left alone it would keep its partition's offset where it is.
            log.critical("delivery_ended", topic=self._topic.name, exc_info=error)
            self._telemetry.fatal(f"{self._group}: {type(error).__name__} while seeing to a message")
        finally:
            del self._works[asyncio.current_task()]  # type: ignore[arg-type]
            if work.abandoned:
                self._carried.ended(work, finished)
            self._after(work.partition)
        self._latency.observe(time.perf_counter() - started)

    def _after(self, partition: Partition) -> None:
        self._in_flight -= 1
        partition.in_flight -= 1
        self._stall.moved()
        if self._in_flight <= self._enough_in_flight:
            self._room.set()
        if not partition.in_flight:
            self._finished.set()
        if partition.full and partition.tracker.span <= self._settings.stage_max_uncommitted * 3 // 4:
            partition.full = False
            self._reader.resume((partition,))

    async def _settle_revoked(self, revoked: Collection[Partition]) -> None:
        """Waits a little for the messages of `revoked`. The whole group waits with us, so not for all of them."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REVOKE_WAIT_SECONDS):
                while any(partition.in_flight for partition in revoked):
                    self._finished.clear()
                    await self._finished.wait()
        self._carried.revoked(self._works.values())

    async def _commit(self) -> None:
        self._latency.flush()
        await self._reader.commit()

    async def _cut_overdue(self) -> None:
        self._delivery.cut_overdue()

    async def _look(self) -> None:
        self._lag.report(self._reader.lag())
        reason = await self._stall.look()
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
