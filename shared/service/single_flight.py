"""Joins concurrent calls for the same key into one."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
ValueT = TypeVar("ValueT")


class SingleFlight(Generic[KeyT, ValueT]):
    """Runs one call per key at a time; callers that come meanwhile get its result or its exception.

    The call goes on when a caller is cancelled, since others may wait for it.
    """

    def __init__(self) -> None:
        self._running: dict[KeyT, asyncio.Task[ValueT]] = {}

    async def run(self, key: KeyT, call: Callable[[], Awaitable[ValueT]]) -> ValueT:
        """The result of `call()`, or of the call for `key` that is running already."""
        running = self._running.get(key)
        if running is None:
            running = self._running[key] = asyncio.ensure_future(_awaited(call))
            running.add_done_callback(lambda task: self._done(key, task))
        return await asyncio.shield(running)

    def is_running(self, key: KeyT) -> bool:
        return key in self._running

    def forget_all(self) -> None:
        """Later callers start new calls; those that wait already keep the call they joined."""
        self._running.clear()

    def _done(self, key: KeyT, task: asyncio.Task[ValueT]) -> None:
        if self._running.get(key) is task:
            del self._running[key]
        if not task.cancelled():
            task.exception()  # read, so that a failure that no caller waits for is not reported as never retrieved


async def _awaited(call: Callable[[], Awaitable[ValueT]]) -> ValueT:
    return await call()
