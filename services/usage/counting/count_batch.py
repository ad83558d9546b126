"""Counts ledger events exactly once, in batches that survive a crash at any step.

The steps of a batch, each durable before the next one begins:

1. `begin` opens a numbered batch in the registry, in state `storing`;
2. `store` inserts the events that the ledger lacks, with the batch number;
3. `start_counting` sets the state `counting`: no event can join the batch any more;
4. `add` increments each counter and rollup that does not have the batch number yet, and stores the number in it;
5. `close` removes the batch from the registry.

An event is counted when its batch is closed, so the event itself is never written a second time. Only the owner of a
batch makes step 3, so no process counts a batch that may still grow. `resume` recovers a batch after its owner's lease
has expired, in any process: a `counting` batch is taken over and counted (step 4 skips the counters that have it), a
`storing` batch is given up for good and its events move to a new batch.

The events are safe from step 3 on, so the next batch can be stored while this one is counted.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from services.usage.counting.increments import CounterKey, Increments, increments_of
from services.usage.counting.ledger_event import LedgerEvent

_BEGIN_WITHIN_SECONDS = 20.0
_BEGIN_RETRY_SECONDS = 0.1

BatchState = Literal["storing", "counting", "given up"]
OnCountersRaised = Callable[[Collection[CounterKey]], Awaitable[None]]
OnInterrupted = Callable[[int, Exception], None]


class CountingInterrupted(Exception):
    """The batch cannot continue in this process: `resume` counts what is stored of it, the caller retries the rest."""


@dataclass(frozen=True)
class OpenBatch:
    """A batch in the registry. Its owner has it exclusively until `leased_until` (seconds since 1970)."""

    number: int
    state: BatchState
    owner: str
    leased_until: float


@dataclass(frozen=True)
class BackgroundCount:
    """A stored batch: how many of its events were new, and a future that completes, without error, after counting."""

    new: int
    done: asyncio.Future[None]


class BatchRegistry(Protocol):
    """Assigns batch numbers and lists the open batches. Every method is one atomic step, visible to all processes."""

    async def begin(self, owner: str, leased_until: float) -> int | None:
        """Opens a batch in state `storing` and returns its number; None while too many batches are open."""

    async def start_counting(self, number: int, owner: str, leased_until: float) -> bool:
        """Changes `storing` to `counting`; False when the owner no longer has the batch."""

    async def take_over(self, batch: OpenBatch, owner: str, leased_until: float) -> bool:
        """Makes `owner` the owner of an open batch; False when the batch changed since it was read."""

    async def give_up(self, batch: OpenBatch) -> bool:
        """Ends a `storing` batch and leaves its events uncounted; False when the batch changed since it was read."""

    async def given_up_batches(self) -> list[int]:
        """The numbers of all batches that were ever given up."""

    async def close(self, number: int) -> None:
        """Removes a counted batch."""

    async def open_batches(self) -> list[OpenBatch]: ...


class Ledger(Protocol):
    """The stored events, and the counters and rollups made from them."""

    async def store(self, events: Sequence[LedgerEvent], number: int) -> set[str]:
        """Stores the events that are not in the ledger yet under the batch, and returns their ids."""

    async def add(self, increments: Increments, number: int) -> None:
        """Increments each counter and rollup that does not have this batch yet."""

    async def events_of(self, number: int) -> list[LedgerEvent]:
        """The batch's events."""

    async def first_with_events(self, numbers: Sequence[int]) -> int | None:
        """One of these batches that has events; None when all are empty."""

    async def move(self, from_number: int, to_number: int) -> int:
        """Moves the events of one batch to another, and returns how many."""


class CountBatch:
    """The use case. `owner` identifies this process; `clock` returns seconds since 1970 and is used for leases only.

    `on_counters_raised` is awaited with the counters that a batch raised, before the batch is closed: after a crash it
    is called again for the same batch. `on_interrupted` gets the number and the error of a batch that
    `count_in_background` stored and could not count; `resume` counts it later.
    """

    def __init__(
        self,
        ledger: Ledger,
        registry: BatchRegistry,
        owner: str,
        lease_seconds: float,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        on_counters_raised: OnCountersRaised | None = None,
        on_interrupted: OnInterrupted | None = None,
    ) -> None:
        self._ledger = ledger
        self._registry = registry
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._sleep = sleep
        self._on_counters_raised = on_counters_raised
        self._on_interrupted = on_interrupted
        self._background: asyncio.Task[None] | None = None

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        """Waits up to `grace_seconds` for the batch in the background; `resume` counts it if that is too short."""
        if self._background is not None:
            await asyncio.wait([self._background], timeout=grace_seconds)
            self._background.cancel()

    async def count(self, events: Sequence[LedgerEvent]) -> int:
        """Counts the events that the ledger lacks, and returns how many. Raises CountingInterrupted."""
        if not events:
            return 0
        number, new_events = await self._store(events)
        await self._apply_and_close(number, new_events)
        return len(new_events)

    async def count_in_background(self, events: Sequence[LedgerEvent]) -> BackgroundCount:
        """Stores the events that the ledger lacks and returns once they are safe; a background task counts them.

        Only one batch is counted at a time, so this waits for the previous one. Raises CountingInterrupted.
        """
        number, new_events = await self._store(events)
        if self._background is not None:
            await asyncio.wait([self._background])
        self._background = asyncio.create_task(self._apply_and_close_or_report(number, new_events))
        return BackgroundCount(len(new_events), self._background)

    async def resume(self) -> int:
        """Finishes batches whose lease has expired, and returns how many it counted. Raises CountingInterrupted."""
        counted = 0
        for batch in await self._registry.open_batches():
            if batch.state == "given up" or batch.leased_until > self._clock():
                continue
            if batch.state == "storing":
                await self._registry.give_up(batch)
            elif await self._registry.take_over(batch, self._owner, self._lease_end()):
                await self._apply_and_close(batch.number, await self._ledger.events_of(batch.number))
                counted += 1
        return counted + await self._count_events_of_given_up_batches()

    async def _count_events_of_given_up_batches(self) -> int:
        counted = 0
        while True:
            given_up = await self._registry.given_up_batches()
            source = await self._ledger.first_with_events(given_up) if given_up else None
            if source is None:
                return counted
            number = await self._registry.begin(self._owner, self._lease_end())
            if number is None:
                return counted
            await self._ledger.move(source, number)
            await self._start_counting(number)
            await self._apply_and_close(number, await self._ledger.events_of(number))
            counted += 1

    async def _store(self, events: Sequence[LedgerEvent]) -> tuple[int, list[LedgerEvent]]:
        """Steps 1 to 3: returns the batch number and the events that the ledger lacked."""
        by_id = {event.event_id: event for event in events}
        number = await self._begin()
        new_ids = await self._ledger.store(list(by_id.values()), number)
        await self._start_counting(number)
        return number, [by_id[event_id] for event_id in new_ids]

    async def _begin(self) -> int:
        deadline = self._clock() + _BEGIN_WITHIN_SECONDS
        while (number := await self._registry.begin(self._owner, self._lease_end())) is None:
            if self._clock() > deadline:
                raise CountingInterrupted("an old batch is not finished")
            await self.resume()
            await self._sleep(_BEGIN_RETRY_SECONDS)
        return number

    async def _start_counting(self, number: int) -> None:
        if not await self._registry.start_counting(number, self._owner, self._lease_end()):
            raise CountingInterrupted("the lease expired while events were stored")

    async def _apply_and_close_or_report(self, number: int, events: Sequence[LedgerEvent]) -> None:
        try:
            await self._apply_and_close(number, events)
        except Exception as error:
            if self._on_interrupted is not None:
                self._on_interrupted(number, error)

    async def _apply_and_close(self, number: int, events: Sequence[LedgerEvent]) -> None:
        """Steps 4 and 5."""
        if events:
            increments = increments_of(events)
            await self._ledger.add(increments, number)
            if self._on_counters_raised is not None and increments.counters:
                await self._on_counters_raised(increments.counters.keys())
        await self._registry.close(number)

    def _lease_end(self) -> float:
        return self._clock() + self._lease_seconds
