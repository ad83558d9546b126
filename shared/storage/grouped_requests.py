"""Requests that come while one is on its way to a server, and go together in the next.

A round trip costs far more than what one small request adds to it. So a request that finds nothing on its way goes
alone and at once; those that come meanwhile share the next one. Nobody waits for others to come.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Generic, TypeVar

from shared.storage.documents import StorageUnavailable

_LARGEST_GROUP = 250
_MOST_WAITING = 20_000
Q = TypeVar("Q")
A = TypeVar("A")


class GroupedRequests(Generic[Q, A]):
    """Each request has its own outcome, and one that is given up changes nothing for those beside it."""

    def __init__(
        self,
        send: Callable[[Q], Awaitable[A]],
        send_together: Callable[[Sequence[Q]], Awaitable[Sequence[A | BaseException]]],
    ) -> None:
        """`send_together` gives an answer or an error for each request, in order; what it raises is everybody's."""
        self._send = send
        self._send_together = send_together
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._on_its_way = False
        self._groups: asyncio.Task[None] | None = None  # the loop itself keeps no hold of its tasks

    async def ask(self, request: Q) -> A:
        """Raises what the request led to, and `StorageUnavailable` when too many are waiting already."""
        if self._on_its_way:
            return await self._wait(request)
        self._on_its_way = True
        try:
            return await self._send(request)
        finally:
            self._go_on()

    async def _wait(self, request: Q) -> A:
        if len(self._waiting) >= _MOST_WAITING:
            raise StorageUnavailable("too many requests are waiting for the server")
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, answer))
        return await answer

    def _go_on(self) -> None:
        if self._waiting:
            self._groups = asyncio.get_running_loop().create_task(self._send_waiting())
        else:
            self._on_its_way = False

    async def _send_waiting(self) -> None:
        try:
            while self._waiting:
                group = list(islice(self._waiting, _LARGEST_GROUP))
                for _ in group:
                    self._waiting.popleft()
                await self._send_group([one for one in group if not one[1].done()])
        finally:
            self._on_its_way = False
            for _, answer in self._waiting:  # only when the loop ends under us
                answer.cancel()
            self._waiting.clear()

    async def _send_group(self, group: Sequence[tuple[Q, asyncio.Future[A]]]) -> None:
        if not group:
            return
        try:
            outcomes = await self._send_together([request for request, _ in group])
        except asyncio.CancelledError:
            for _, answer in group:
                answer.cancel()
            raise
        except Exception as error:
            outcomes = [error] * len(group)
        for (_, answer), outcome in zip(group, outcomes, strict=True):
            if answer.done():
                continue
            if isinstance(outcome, BaseException):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)
