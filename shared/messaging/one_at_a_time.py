"""Keeps a process from working on one thing twice at the same time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class OneAtATime:
    """A lock per key, kept only while somebody holds it or waits for it.

    A message can be delivered again while its first delivery is still at work: the second waits here, and finds what
    the first has recorded.
    """

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    def __len__(self) -> int:
        return len(self._locks)

    @asynccontextmanager
    async def on(self, key: str) -> AsyncIterator[None]:
        """Waits until nobody else of this process is at work on `key`."""
        lock, users = self._locks.get(key) or (asyncio.Lock(), 0)
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            users = self._locks[key][1] - 1
            if users:
                self._locks[key] = (lock, users)
            else:
                del self._locks[key]
