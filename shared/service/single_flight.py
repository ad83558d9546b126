"""Joins concurrent calls for the same key into one."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
ValueT = TypeVar("ValueT")


class SingleFlight(Generic[KeyT, ValueT]):
    """Runs one call per key at a time; callers that come meanwhile get its result or its exception.

    A call continues when a caller is cancelled, since others may wait for it. `on_result` receives the key and the
    result of each call that succeeds, before its callers do; it fills a cache. Results of calls that were running at
    `forget_all` do not reach it.
    """

    def __init__(self, on_result: Callable[[KeyT, ValueT], None] | None = None) -> None:
        self._on_result = on_result
        self._running: dict[KeyT, asyncio.Task[ValueT]] = {}

    async def run(self, key: KeyT, call: Callable[[], Awaitable[ValueT]]) -> ValueT:
        """The result of `call()`, or of the call for `key` that is running already."""
        return await asyncio.shield(self.start(key, call))

    def start(self, key: KeyT, call: Callable[[], Awaitable[ValueT]]) -> asyncio.Task[ValueT]:
        """The running call for `key`, started now unless there is one. Wait for it behind `asyncio.shield`."""
        running = self._running.get(key)
        if running is None:
            running = self._running[key] = asyncio.create_task(_awaited(call))
            running.add_done_callback(lambda task: self._done(key, task))
        return running

    def is_running(self, key: KeyT) -> bool:
        return key in self._running

    def forget_all(self) -> None:
        """Later callers start new calls; those that wait already keep the call they joined."""
        self._running.clear()

    async def stop(self) -> None:
        """Cancels the running calls and waits for their end."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _done(self, key: KeyT, task: asyncio.Task[ValueT]) -> None:
        forgotten = self._running.get(key) is not task
        if not forgotten:
            del self._running[key]
        # Reading the exception marks it as retrieved: a failure that no caller waits for is not reported.
        if task.cancelled() or task.exception() is not None or forgotten or self._on_result is None:
            return
        self._on_result(key, task.result())


async def _awaited(call: Callable[[], Awaitable[ValueT]]) -> ValueT:
    return await call()
