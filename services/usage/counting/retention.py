"""Prunes old events from the ledger and keeps their totals, so that the ledger can still be recounted.

The totals of pruned events are called sealed sums: they are computed from the events alone and stored apart from the
counters and rollups. Events are pruned in steps of a few hundred, one step at a time across all processes:

1. `begin_step` records which events the step prunes;
2. `add_to_sealed_sums` adds their amounts to each sum that does not have this step; step numbers rise;
3. `delete` deletes the events;
4. `end_step` clears the record.

Each is durable before the next. Any process finishes an unfinished step; if two do so at once, nothing happens twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol

from services.usage.counting.increments import Increments, increments_of
from services.usage.counting.ledger_event import LedgerEvent
from shared.contracts.contract import format_utc

# An event is kept this much longer than it could be accepted, for clocks that differ.
_SAFETY = timedelta(days=1)


@dataclass(frozen=True)
class PruneStep:
    """The step in progress with its events, or the last one (`idle`). `paused_until` is RFC 3339 text, or empty."""

    number: int = 0
    state: Literal["idle", "adding", "removing"] = "idle"
    event_ids: tuple[str, ...] = ()
    paused_until: str = ""


class PrunableLedger(Protocol):
    """The stored events, the sealed sums and the record of the current step."""

    async def current_step(self) -> PruneStep: ...

    async def oldest_counted_events(self, stored_before: datetime) -> list[LedgerEvent]:
        """Some of the counted events that were stored before that moment; empty when there are none."""

    async def begin_step(self, last: PruneStep, event_ids: Sequence[str]) -> bool:
        """Begins the step after `last`; False when another process began it first."""

    async def events_by_id(self, event_ids: Sequence[str]) -> list[LedgerEvent]: ...

    async def add_to_sealed_sums(self, increments: Increments, number: int) -> None:
        """Adds the amounts to each sum that does not have step `number` yet."""

    async def start_deleting(self, number: int) -> bool:
        """Changes `adding` to `removing`; True also when that has happened, False when the step has ended."""

    async def delete(self, event_ids: Sequence[str]) -> None: ...

    async def end_step(self, number: int) -> None: ...


class Retention:
    """The use case. `keep` is how long an event stays in the ledger after it was stored."""

    def __init__(self, ledger: PrunableLedger, keep: timedelta) -> None:
        self._ledger = ledger
        self._keep = keep

    def oldest_accepted(self, now: datetime) -> datetime:
        """Events that occurred earlier must be refused: they may have been counted and pruned already."""
        return now - self._keep

    async def prune(self, now: datetime, most_steps: int = 1_000) -> int:
        """Prunes events that are older than they are kept, and returns how many. Raises StorageUnavailable.

        While pruning is paused, no new step is begun.
        """
        pruned = 0
        for _ in range(most_steps):
            step = await self._ledger.current_step()
            if step.state == "idle":
                events = await self._ledger.oldest_counted_events(now - self._keep - _SAFETY)
                if not events or step.paused_until > format_utc(now):
                    return pruned
                await self._ledger.begin_step(step, [event.event_id for event in events])
                continue
            await self._finish(step)
            pruned += len(step.event_ids)
        return pruned

    async def _finish(self, step: PruneStep) -> None:
        if step.state == "adding":
            events = await self._ledger.events_by_id(step.event_ids)
            await self._ledger.add_to_sealed_sums(increments_of(events), step.number)
            if not await self._ledger.start_deleting(step.number):
                return
        await self._ledger.delete(step.event_ids)
        await self._ledger.end_step(step.number)
