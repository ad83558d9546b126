"""Removes old events from the ledger and keeps what they add up to, so that it can still be recounted.

The sums of what is removed are sealed: kept apart from the counters and rollups, made from the events alone. Events go
in steps of some hundred, one step at a time in the whole system, and each step is durable before it begins:

1. `begin` writes down which events it takes;
2. their sums are added where the sums lack this step, which a rising number decides;
3. the events are deleted;
4. `end` forgets the step.

Whoever finds a step that is not over does what is left of it; two that do it at once change nothing twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol

from services.usage.counting.increments import Increments, increments_of
from services.usage.counting.ledger_event import LedgerEvent

SAFETY = timedelta(days=1)


@dataclass(frozen=True)
class Sealing:
    """The step that is being made, or the last one (`idle`). `event_ids` are those that it takes."""

    number: int = 0
    state: Literal["idle", "adding", "removing"] = "idle"
    event_ids: tuple[str, ...] = ()
    paused_until: str = ""


class SealedLedger(Protocol):
    """What the use case wants of the store."""

    async def sealing(self) -> Sealing: ...

    async def oldest_counted(self, stored_before: datetime) -> list[LedgerEvent]:
        """Some of the events that were stored before; empty when there are none."""

    async def begin_sealing(self, last: Sealing, event_ids: Sequence[str]) -> bool:
        """The step after `last`; False when somebody was faster."""

    async def events_among(self, event_ids: Sequence[str]) -> list[LedgerEvent]: ...

    async def add_sealed(self, increments: Increments, number: int) -> None:
        """Adds to each sum that lacks step `number`."""

    async def begin_removing(self, number: int) -> bool:
        """`adding` to `removing`; True as well when it is there already."""

    async def remove(self, event_ids: Sequence[str]) -> None: ...

    async def end_sealing(self, number: int) -> None: ...


class Retention:
    """The use case. `keep` is how long an event stays after it came."""

    def __init__(self, ledger: SealedLedger, keep: timedelta) -> None:
        self._ledger = ledger
        self._keep = keep

    def oldest_taken(self, now: datetime) -> datetime:
        """What happened earlier is refused: its id may be removed already, so that it might be counted twice."""
        return now - self._keep

    async def remove_old(self, now: datetime, paused_before: str, most_steps: int = 1_000) -> int:
        """Removes what is older than it has to be kept. Gives how many events. Raises StorageUnavailable.

        `paused_before` is the present as text: while the sealing is paused beyond that, no new step is begun.
        """
        removed = 0
        for _ in range(most_steps):
            last = await self._ledger.sealing()
            if last.state == "idle":
                # A day more than what is refused, for clocks that differ.
                events = await self._ledger.oldest_counted(now - self._keep - SAFETY)
                if not events or last.paused_until > paused_before:
                    return removed
                await self._ledger.begin_sealing(last, [event.event_id for event in events])
                continue
            await self._finish(last)
            removed += len(last.event_ids)
        return removed

    async def _finish(self, step: Sealing) -> None:
        if step.state == "adding":
            events = await self._ledger.events_among(step.event_ids)
            await self._ledger.add_sealed(increments_of(events), step.number)
            if not await self._ledger.begin_removing(step.number):
                return
        await self._ledger.remove(step.event_ids)
        await self._ledger.end_sealing(step.number)
