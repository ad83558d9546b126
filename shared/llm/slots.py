"""The bound on requests in flight."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared.llm.breaker import BreakerOpen
from shared.observability.metrics import MODEL_IN_FLIGHT


class Slots:
    """`size` slots, handed out first come, first served. Those who wait can all be turned away at once."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def one(self, wait_seconds: float) -> AsyncIterator[None]:
        """Holds one slot. TimeoutError when none came free in time, BreakerOpen when turned away while waiting."""
        if self._free > 0:
            self._free -= 1
        else:
            await self._wait(wait_seconds)
        MODEL_IN_FLIGHT.inc()
        try:
            yield
        finally:
            MODEL_IN_FLIGHT.dec()
            self._release()

    def turn_away(self) -> None:
        """Ends all waits with BreakerOpen."""
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(BreakerOpen())

    async def _wait(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            async with asyncio.timeout(seconds):
                await future
        except (TimeoutError, asyncio.CancelledError):
            if future.done() and not future.cancelled() and future.exception() is None:
                self._release()
            raise

    def _release(self) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                return
        self._free += 1
