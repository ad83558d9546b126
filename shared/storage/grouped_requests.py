"""Batches requests to a server: those that arrive during a round trip are sent together in the next one.

A round trip costs far more than one small request adds to it. A request is sent immediately when no other is in
flight, so batching never delays a request that could go alone.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Generic, TypeVar

from shared.storage.documents import StorageUnavailable

_MAX_GROUP = 250
_MAX_WAITING = 20_000
Q = TypeVar("Q")
A = TypeVar("A")


class GroupedRequests(Generic[Q, A]):
    """Sends requests alone or in groups. Each has its own outcome; cancelling one does not affect the others."""

    def __init__(
        self,
        send: Callable[[Q], Awaitable[A]],
        send_group: Callable[[Sequence[Q]], Awaitable[Sequence[A | BaseException]]],
    ) -> None:
        """`send_group` returns each request's result or error, in order; if it raises, the whole group fails."""
        self._send = send
        self._send_group = send_group
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._in_flight = False
        self._groups: asyncio.Task[None] | None = None  # the event loop holds only a weak reference to its tasks

    async def request(self, request: Q) -> A:
        """Returns the request's result or raises its error; raises `StorageUnavailable` when the queue is full."""
        if self._in_flight:
            return await self._enqueue(request)
        self._in_flight = True
        try:
            return await self._send(request)
        finally:
            self._start_next_group()

    async def _enqueue(self, request: Q) -> A:
        if len(self._waiting) >= _MAX_WAITING:
            raise StorageUnavailable("too many requests are waiting for the server")
        result: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, result))
        return await result

    def _start_next_group(self) -> None:
        if self._waiting:
            self._groups = asyncio.get_running_loop().create_task(self._send_waiting())
        else:
            self._in_flight = False

    async def _send_waiting(self) -> None:
        try:
            while self._waiting:
                group = list(islice(self._waiting, _MAX_GROUP))
                for _ in group:
                    self._waiting.popleft()
                await self._resolve([entry for entry in group if not entry[1].done()])
        finally:
            self._in_flight = False
            for _, result in self._waiting:  # not empty only if this task was cancelled
                result.cancel()
            self._waiting.clear()

    async def _resolve(self, group: Sequence[tuple[Q, asyncio.Future[A]]]) -> None:
        if not group:
            return
        try:
            outcomes = await self._send_group([request for request, _ in group])
        except asyncio.CancelledError:
            for _, result in group:
                result.cancel()
            raise
        except Exception as error:
            outcomes = [error] * len(group)
        for (_, result), outcome in zip(group, outcomes, strict=True):
            if result.done():
                continue
            if isinstance(outcome, BaseException):
                result.set_exception(outcome)
            else:
                result.set_result(outcome)
