"""Progress of an upgrade in Redis: a stream of events for its client, and the reply to the gateway that waits.

Redis may lose both. The gateway's and the upgrader's records hold the state of an upgrade.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import orjson
from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from shared.contracts import redis_keys
from shared.contracts.upgrade_results import (
    ACCEPTED_STEP,
    COMPLETED_STEP,
    StageProgress,
    StageState,
    UpgradeResult,
    stage_step,
)
from shared.contracts.upgrade_tasks import Stage, UpgradeTask
from shared.observability.logs import get_logger

_QUEUE_LIMIT = 10_000
_WRITES_PER_PIPELINE = 256
_GATHER_SECONDS = 0.005
_PAUSE_AFTER_ERROR_SECONDS = 1.0

log = get_logger(__name__)


@dataclass(frozen=True)
class UpgradeEvent:
    """One event of an upgrade. `step` is its id within the upgrade, `data` is JSON."""

    step: int
    event: str
    data: bytes


@dataclass(frozen=True)
class _Write:
    key: str
    step: int
    event: str
    data: bytes
    channel: str | None
    reply: bytes


class ProgressLog:
    """Reads and writes the event streams of upgrades. Component.

    Writing only queues, so that a stage never waits for Redis; a full queue drops events. A background task writes the
    queue in batches: it waits 5 ms for further events, but not when one carries a reply.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._queue: asyncio.Queue[_Write] = asyncio.Queue(_QUEUE_LIMIT)
        self._urgent = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._writer = asyncio.create_task(self._write_forever())

    async def stop(self, grace_seconds: float) -> None:
        """Waits up to `grace_seconds` until the queue is written."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._queue.join(), grace_seconds)
        if self._writer:
            self._writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._writer

    async def accepted(self, task: UpgradeTask) -> None:
        self._put(task, ACCEPTED_STEP, "accepted", orjson.dumps({"upgradeId": task.upgrade_id}))

    async def stage(self, task: UpgradeTask, stage: Stage, state: StageState, latency_ms: int | None = None) -> None:
        progress = StageProgress(stage=stage, state=state, latency_ms=latency_ms)
        self._put(task, stage_step(stage, state), "stage", progress.to_json())

    async def completed(self, task: UpgradeTask, result: UpgradeResult) -> None:
        """Writes the last event and sends the result to the gateway replica that waits for it."""
        channel = redis_keys.gateway_replies(task.reply_to) if task.reply_to else None
        data = orjson.dumps({"upgradeId": task.upgrade_id})
        self._put(task, COMPLETED_STEP, "completed", data, channel, result.to_json() if channel else b"")

    async def read(
        self, tenant_id: str, upgrade_id: str, after_step: int = 0, block_ms: int | None = None
    ) -> list[UpgradeEvent]:
        """Returns the events after `after_step`, oldest first, waiting up to `block_ms` for one. Raises RedisError."""
        key = redis_keys.upgrade_events(tenant_id, upgrade_id)
        answer = await self._redis.xread({key: f"{after_step}-0"}, block=block_ms)
        entries = _entries(answer)
        return [UpgradeEvent(int(entry_id.split(b"-")[0]), f[b"event"].decode(), f[b"data"]) for entry_id, f in entries]

    def _put(
        self, task: UpgradeTask, step: int, event: str, data: bytes, channel: str | None = None, reply: bytes = b""
    ) -> None:
        key = redis_keys.upgrade_events(task.tenant_id, task.upgrade_id)
        try:
            self._queue.put_nowait(_Write(key, step, event, data, channel, reply))
        except asyncio.QueueFull:
            log.warning("progress_dropped", upgrade_id=task.upgrade_id, step=step)
        if channel:
            self._urgent.set()

    async def _write_forever(self) -> None:
        while True:
            writes = [await self._queue.get()]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GATHER_SECONDS):
                    await self._urgent.wait()
            self._urgent.clear()
            while len(writes) < _WRITES_PER_PIPELINE and not self._queue.empty():
                writes.append(self._queue.get_nowait())
            try:
                await self._write(writes)
            except (RedisError, OSError, TimeoutError) as error:
                log.warning("progress_not_written", events=len(writes), error=type(error).__name__)
                await asyncio.sleep(_PAUSE_AFTER_ERROR_SECONDS)
            finally:
                for _ in writes:
                    self._queue.task_done()

    async def _write(self, writes: list[_Write]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for write in writes:
            pipeline.xadd(
                write.key,
                {"event": write.event, "data": write.data},
                id=f"{write.step}-0",
                maxlen=redis_keys.UPGRADE_EVENTS_MAX_LENGTH,
            )
            pipeline.expire(write.key, redis_keys.UPGRADE_EVENTS_TTL_SECONDS)
            if write.channel:
                pipeline.publish(write.channel, write.reply)
        for answer in await pipeline.execute(raise_on_error=False):
            # Redis rejects a step that exists already with a ResponseError, which removes duplicates.
            if isinstance(answer, RedisError) and not isinstance(answer, ResponseError):
                raise answer


class ReplyListener:
    """Subscribes to the replies for one gateway replica and passes each result to `on_result`. Component."""

    def __init__(self, redis: Redis, replica_id: str, on_result: Callable[[UpgradeResult], Awaitable[None]]) -> None:
        self._redis = redis
        self._channel = redis_keys.gateway_replies(replica_id)
        self._on_result = on_result
        self._listener: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._listener = asyncio.create_task(self._listen_forever())

    async def stop(self, grace_seconds: float) -> None:
        if self._listener:
            self._listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listener

    async def _listen_forever(self) -> None:
        while True:
            try:
                await self._listen()
            except (RedisError, OSError, TimeoutError) as error:
                log.warning("reply_channel_lost", error=type(error).__name__)
            await asyncio.sleep(_PAUSE_AFTER_ERROR_SECONDS)

    async def _listen(self) -> None:
        async with self._redis.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(self._channel)
            while True:
                message = await channel.get_message(ignore_subscribe_messages=True, timeout=5.0)
                if message and message["type"] == "message":
                    await self._deliver(message["data"])

    async def _deliver(self, body: bytes) -> None:
        try:
            result = UpgradeResult.model_validate_json(body)
        except ValidationError:
            log.warning("reply_not_understood", size=len(body))
            return
        await self._on_result(result)


def _entries(answer: object) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The entries of the only stream in an XREAD response, which RESP2 and RESP3 shape differently."""
    if not answer:
        return []
    if isinstance(answer, dict):
        [entries] = answer.values()
        return entries[0] if entries and isinstance(entries[0], list) else entries
    assert isinstance(answer, list)  # noqa: S101 -- RESP2 returns [[name, entries]]
    return list(answer[0][1])
