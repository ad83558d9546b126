"""Counts ledger events, each once: store them under a batch, count the batch, close it.

A batch is `storing` while its owner puts events under it, and `counting` from then on; only its owner makes that
step, so nobody counts a batch to which events may still be added. An event is counted when its batch is closed, which
needs no second write of the event. What a crash leaves is finished by `resume`, in any process: a `counting` batch is
counted to its end (counters that have it already refuse it), a `storing` batch is given up for good and its events go
into a new one.

So a batch is safe as soon as it is `counting`, and the next one is stored while it is counted.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from services.usage.counting.increments import CounterKey, Increments, increments_of
from services.usage.counting.ledger_event import LedgerEvent

BatchState = Literal["storing", "counting", "given up"]

_BEGIN_WITHIN_SECONDS = 20.0
_WINDOW_PAUSE_SECONDS = 0.1


class CountingInterrupted(Exception):
    """This batch cannot go on here. What is stored of it is counted by `resume`; the rest is to be given again."""


@dataclass(frozen=True)
class OpenBatch:
    """A batch that is not finished, and until when (seconds since 1970) its owner is left alone with it."""

    number: int
    state: BatchState
    owner: str
    leased_until: float


class BatchRegistry(Protocol):
    """Numbers batches and knows the open ones. Every method is one atomic step, seen by all processes."""

    async def begin(self, owner: str, leased_until: float) -> int | None:
        """The number of a new batch in state `storing`; None while the window is full."""

    async def start_counting(self, number: int, owner: str, leased_until: float) -> bool:
        """`storing` to `counting`; False when the owner has lost the batch."""

    async def take_over(self, batch: OpenBatch, owner: str, leased_until: float) -> bool:
        """Another owner for an open batch; False when somebody was faster."""

    async def give_up(self, batch: OpenBatch) -> bool:
        """Ends a `storing` batch, whose events are then stranded; False when it went on meanwhile."""

    async def given_up(self) -> list[int]:
        """All batches that ever were given up."""

    async def close(self, number: int) -> None:
        """Forgets a batch that is counted."""

    async def open_batches(self) -> list[OpenBatch]: ...


class Ledger(Protocol):
    """The stored events, and the counters and rollups made from them."""

    async def store(self, events: Sequence[LedgerEvent], number: int) -> set[str]:
        """Stores the events that it lacks under the batch. Gives their ids."""

    async def add(self, increments: Increments, number: int) -> None:
        """Raises each counter and rollup that does not have this batch yet."""

    async def events_of(self, number: int) -> list[LedgerEvent]:
        """The batch's events."""

    async def first_with_events(self, numbers: Sequence[int]) -> int | None:
        """One of these batches that has events."""

    async def move(self, from_number: int, to_number: int) -> int:
        """Puts the events of one batch under another. Gives their number."""


Notice = Callable[[Collection[CounterKey]], Awaitable[None]]
Interrupted = Callable[[int, Exception], None]


@dataclass(frozen=True)
class Taken:
    """How many events were new, and their counting, which raises nothing."""

    new: int
    counting: asyncio.Future[None]


class CountBatch:
    """The use case. `owner` names this process; `clock` gives seconds since 1970 and matters for leases only.

    `notice` is told which counters were raised, before the batch is closed: after a crash it is told again.
    `interrupted` is told of a taken batch (its number, and why) whose counting is left to `resume`.
    """

    def __init__(
        self,
        ledger: Ledger,
        registry: BatchRegistry,
        owner: str,
        lease_seconds: float,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        notice: Notice | None = None,
        interrupted: Interrupted | None = None,
    ) -> None:
        self._ledger = ledger
        self._registry = registry
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._sleep = sleep
        self._notice = notice
        self._interrupted = interrupted
        self._counting: asyncio.Task[None] | None = None

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        """Lets the batch that is being counted be counted; what is left of it then is finished by `resume`."""
        if self._counting is not None:
            await asyncio.wait([self._counting], timeout=grace_seconds)
            self._counting.cancel()

    async def count(self, events: Sequence[LedgerEvent]) -> int:
        """Counts those of the events that the ledger lacks, gives how many. Raises CountingInterrupted."""
        if not events:
            return 0
        number, new = await self._store(events)
        await self._finish(number, new)
        return len(new)

    async def take(self, events: Sequence[LedgerEvent]) -> Taken:
        """Stores those of the events that the ledger lacks; then they are safe, and are counted when this has returned.

        One batch is counted at a time, so this waits for the one before. Raises CountingInterrupted.
        """
        number, new = await self._store(events)
        if self._counting is not None:
            await asyncio.wait([self._counting])
        self._counting = asyncio.create_task(self._finish_or_leave(number, new))
        return Taken(len(new), self._counting)

    async def resume(self) -> int:
        """Finishes what others have left, as far as nobody has a lease on it. Gives how many batches."""
        finished = 0
        for batch in await self._registry.open_batches():
            if batch.state == "given up" or batch.leased_until > self._clock():
                continue
            if batch.state == "storing":
                await self._registry.give_up(batch)
            elif await self._registry.take_over(batch, self._owner, self._lease_end()):
                await self._finish(batch.number, await self._ledger.events_of(batch.number))
                finished += 1
        return finished + await self._recount_stranded()

    async def _recount_stranded(self) -> int:
        finished = 0
        while True:
            given_up = await self._registry.given_up()
            stranded = await self._ledger.first_with_events(given_up) if given_up else None
            if stranded is None:
                return finished
            number = await self._registry.begin(self._owner, self._lease_end())
            if number is None:
                return finished
            await self._ledger.move(stranded, number)
            await self._start_counting(number)
            await self._finish(number, await self._ledger.events_of(number))
            finished += 1

    async def _store(self, events: Sequence[LedgerEvent]) -> tuple[int, list[LedgerEvent]]:
        """The number of the batch under which those that the ledger lacked are stored now, and these."""
        by_id = {event.event_id: event for event in events}
        number = await self._begin()
        stored = await self._ledger.store(list(by_id.values()), number)
        await self._start_counting(number)
        return number, [by_id[event_id] for event_id in stored]

    async def _begin(self) -> int:
        deadline = self._clock() + _BEGIN_WITHIN_SECONDS
        while (number := await self._registry.begin(self._owner, self._lease_end())) is None:
            if self._clock() > deadline:
                raise CountingInterrupted("an old batch is not finished")
            await self.resume()
            await self._sleep(_WINDOW_PAUSE_SECONDS)
        return number

    async def _start_counting(self, number: int) -> None:
        if not await self._registry.start_counting(number, self._owner, self._lease_end()):
            raise CountingInterrupted("the lease ran out while events were stored")

    async def _finish_or_leave(self, number: int, events: Sequence[LedgerEvent]) -> None:
        try:
            await self._finish(number, events)
        except Exception as error:
            if self._interrupted is not None:
                self._interrupted(number, error)

    async def _finish(self, number: int, events: Sequence[LedgerEvent]) -> None:
        if events:
            increments = increments_of(events)
            await self._ledger.add(increments, number)
            if self._notice is not None and increments.counters:
                await self._notice(increments.counters.keys())
        await self._registry.close(number)

    def _lease_end(self) -> float:
        return self._clock() + self._lease_seconds
