"""Recounts the whole ledger and compares it with its counters and rollups, while events are counted and pruned."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, Protocol

from services.usage.counting.batch_registry import Progress
from services.usage.counting.increments import Increments, increments_of
from services.usage.counting.ledger_event import LedgerEvent
from services.usage.counting.retention import PruneStep
from services.usage.reconciling.comparison import (
    ConsistentCut,
    Difference,
    amounts_in,
    counter_differences,
    counter_key,
    rollup_differences,
    rollup_key,
)
from shared.contracts.contract import now_utc

_ATTEMPTS = 5
_PAUSE_SECONDS = 2.0
# 24 s in all: enough for a dead process's lease to expire and for its successor to start.
_UNCOUNTED_CHECKS_PER_ATTEMPT = 3
_PAUSE_PRUNING_FOR = timedelta(minutes=15)

Page = Callable[[str], Awaitable[list[dict[str, Any]]]]


class SealedSums(Protocol):
    """The totals of pruned events, by pages in the order of ids."""

    async def current_step(self) -> PruneStep: ...

    async def pause(self, until: datetime) -> None: ...

    async def page_of_sealed_counters(self, after_id: str) -> list[dict[str, Any]]: ...

    async def page_of_sealed_rollups(self, after_id: str) -> list[dict[str, Any]]: ...


class StoredLedger(Protocol):
    """The events, counters and rollups, by pages in the order of ids."""

    @property
    def sealed(self) -> SealedSums: ...

    async def progress(self) -> Progress: ...

    async def page_of_events(self, after_id: str) -> list[dict[str, Any]]: ...

    async def uncounted_among(self, events: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]: ...

    async def missing(self, event_ids: Sequence[str]) -> list[str]: ...

    async def page_of_counters(self, after_id: str) -> list[dict[str, Any]]: ...

    async def page_of_rollups(self, after_id: str) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class LedgerCheck:
    """The result: numbers of events, of uncounted events and of tenants, and all differences.

    `uncompared` is the number of tenants that no attempt could compare, out of `attempts` within `tried_seconds`.
    """

    events: int = 0
    uncounted: int = 0
    tenants: int = 0
    uncompared: int = 0
    differences: list[Difference] = field(default_factory=list)
    attempts: int = 1
    tried_seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return not self.differences and not self.uncounted


async def check_ledger(
    ledger: StoredLedger, attempts: int = _ATTEMPTS, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> LedgerCheck:
    """Compares the counters and rollups of all tenants with the ledger. Raises StorageUnavailable.

    It reads everything again, up to `attempts` times, as long as it finds a difference. Events that are not counted
    yet are checked again for some seconds before they are reported. Pruning is paused meanwhile; if events were pruned
    during every attempt nevertheless, no tenant is compared.
    """
    try:
        return await _check_ledger(ledger, attempts, sleep)
    finally:
        await ledger.sealed.pause(now_utc())


async def _check_ledger(ledger: StoredLedger, attempts: int, sleep: Callable[[float], Awaitable[None]]) -> LedgerCheck:
    began = monotonic()
    for attempt in range(1, attempts + 1):
        recount = await _read(ledger)
        differences = recount.differences()
        if attempt == attempts or not (recount.pruned_meanwhile or differences):
            break
        await sleep(_PAUSE_SECONDS)
    tried_seconds = monotonic() - began
    uncounted = recount.uncounted
    for _ in range(_UNCOUNTED_CHECKS_PER_ATTEMPT * (attempts - 1)):
        if not uncounted:
            break
        await sleep(_PAUSE_SECONDS)
        uncounted = await ledger.missing(uncounted)
    return LedgerCheck(
        events=recount.events,
        uncounted=len(uncounted),
        tenants=recount.tenants,
        uncompared=recount.tenants if recount.pruned_meanwhile else 0,
        differences=differences,
        attempts=attempt,
        tried_seconds=tried_seconds,
    )


@dataclass
class _Recount:
    """One reading of everything. If events were pruned meanwhile, it says nothing about differences."""

    cut: ConsistentCut
    increments: Increments = field(default_factory=Increments)
    events: int = 0
    uncounted: list[str] = field(default_factory=list)
    being_pruned: list[LedgerEvent] = field(default_factory=list)
    pruned_meanwhile: bool = False

    def add_page(
        self, page: Sequence[Mapping[str, Any]], uncounted: Sequence[Mapping[str, Any]], step_ids: AbstractSet[str]
    ) -> None:
        """Adds a page of events. `uncounted` are some of them; `step_ids` are the events of the current prune step."""
        self.events += len(page)
        self.uncounted += [event["_id"] for event in uncounted]
        self.being_pruned += [LedgerEvent.from_document(event) for event in page if event["_id"] in step_ids]
        kept = [event for event in page if event["_id"] not in step_ids]
        self.increments.add(self.cut.increments_of(kept, {int(event["batchId"]) for event in uncounted}))

    @property
    def tenants(self) -> int:
        of_counters = {key.tenant_id for key in self.cut.counters.keys() | self.increments.counters.keys()}
        return len(of_counters | {key.tenant_id for key in self.cut.rollups})

    def differences(self) -> list[Difference]:
        if self.pruned_meanwhile:
            return []
        return [
            *counter_differences(self.increments, self.cut.counters.values()),
            *rollup_differences(self.increments, self.cut.rollups.values()),
        ]


async def _read(ledger: StoredLedger) -> _Recount:
    pause = _PruningPause(ledger.sealed)
    await pause.extend()
    step = await ledger.sealed.current_step()
    # The cut is consistent only in this order: the closed batches, the documents that must include them, the events.
    began = await ledger.progress()
    counters = {counter_key(document): document async for document in _documents(ledger.page_of_counters)}
    rollups = {rollup_key(document): document async for document in _documents(ledger.page_of_rollups)}
    recount = _Recount(ConsistentCut(began, counters, rollups))
    after_id = ""
    while page := await ledger.page_of_events(after_id):
        after_id = page[-1]["_id"]
        recount.add_page(page, await ledger.uncounted_among(page), set(step.event_ids))
        await pause.extend()
    recount.increments.add(await _sealed_increments(ledger.sealed, step, recount.being_pruned))
    after = await ledger.sealed.current_step()
    recount.pruned_meanwhile = (after.number, after.state) != (step.number, step.state)
    return recount


class _PruningPause:
    """Pauses pruning. The pause ends by itself some time after the last `extend`, in case this process dies."""

    def __init__(self, sealed: SealedSums) -> None:
        self._sealed = sealed
        self._extend_at = datetime.min.replace(tzinfo=UTC)

    async def extend(self) -> None:
        """To be called at least every few minutes. Raises StorageUnavailable."""
        now = now_utc()
        if now >= self._extend_at:
            self._extend_at = now + _PAUSE_PRUNING_FOR / 3
            await self._sealed.pause(now + _PAUSE_PRUNING_FOR)


async def _sealed_increments(sealed: SealedSums, step: PruneStep, being_pruned: Sequence[LedgerEvent]) -> Increments:
    """The sealed sums, plus the events of an unfinished step in those sums that do not have the step yet."""
    result = Increments()
    unsealed = increments_of(being_pruned) if step.state == "adding" else Increments()
    async for document in _documents(sealed.page_of_sealed_counters):
        counter = counter_key(document)
        result.counters[counter] = amounts_in(document)
        if document["sealedThrough"] >= step.number:
            unsealed.counters.pop(counter, None)
    async for document in _documents(sealed.page_of_sealed_rollups):
        rollup = rollup_key(document)
        result.rollups[rollup] = amounts_in(document)
        if document["sealedThrough"] >= step.number:
            unsealed.rollups.pop(rollup, None)
    result.add(unsealed)
    return result


async def _documents(page_after: Page) -> AsyncIterator[dict[str, Any]]:
    """The documents of all pages."""
    after_id = ""
    while page := await page_after(after_id):
        after_id = page[-1]["_id"]
        for document in page:
            yield document
