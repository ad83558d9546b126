"""Recounts the ledger and compares, also while events are being counted and old ones pruned."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, Protocol

from services.usage.counting.batch_registry import Progress
from services.usage.counting.increments import CounterKey, Increments, increments_of
from services.usage.counting.ledger_event import LedgerEvent
from services.usage.counting.retention import Sealing
from services.usage.reconciling.comparison import (
    ConsistentCut,
    Difference,
    amounts_in,
    counter_differences,
    counter_documents,
    rollup_differences,
    rollup_documents,
    rollup_key,
)
from shared.contracts.contract import now_utc

Page = Callable[[str], Awaitable[list[dict[str, Any]]]]


_NO_SEALING_FOR = timedelta(minutes=15)


class SealedSums(Protocol):
    """What is kept of the events that were removed; the sums by pages in the order of ids."""

    async def sealing(self) -> Sealing: ...

    async def pause(self, until: datetime) -> None: ...

    async def page_of_sealed_counters(self, after_id: str) -> list[dict[str, Any]]: ...

    async def page_of_sealed_rollups(self, after_id: str) -> list[dict[str, Any]]: ...


class NoSealing:
    """Keeps old events where they are, for as long as it is told to and for a while after a process that died."""

    def __init__(self, sealed: SealedSums) -> None:
        self._sealed = sealed
        self._again_at = datetime.min.replace(tzinfo=UTC)

    async def hold(self) -> None:
        """To be called again every few minutes. Raises StorageUnavailable."""
        now = now_utc()
        if now >= self._again_at:
            self._again_at = now + _NO_SEALING_FOR / 3
            await self._sealed.pause(now + _NO_SEALING_FOR)


async def sealed_increments(sealed: SealedSums, sealing: Sealing, being_sealed: Sequence[LedgerEvent]) -> Increments:
    """The sums, and what the events of the step that is under way come to where the sums lack it."""
    result = Increments()
    taking = increments_of(being_sealed) if sealing.state == "adding" else Increments()
    async for document in all_of(sealed.page_of_sealed_counters):
        counter = CounterKey(document["tenantId"], document["period"])
        result.counters[counter] = amounts_in(document)
        if document["sealedThrough"] >= sealing.number:
            taking.counters.pop(counter, None)
    async for document in all_of(sealed.page_of_sealed_rollups):
        rollup = rollup_key(document)
        result.rollups[rollup] = amounts_in(document)
        if document["sealedThrough"] >= sealing.number:
            taking.rollups.pop(rollup, None)
    result.add(taking)
    return result


async def all_of(page_after: Page) -> AsyncIterator[dict[str, Any]]:
    """The documents of all pages."""
    after_id = ""
    while page := await page_after(after_id):
        after_id = page[-1]["_id"]
        for document in page:
            yield document


ATTEMPTS = 5
_PAUSE_SECONDS = 2.0
_LOOKS_PER_ATTEMPT = 3


class StoredLedger(Protocol):
    """Everything of the ledger, by pages in the order of ids."""

    @property
    def sealed(self) -> SealedSums: ...

    async def progress(self) -> Progress: ...

    async def page_of_events(self, after_id: str) -> list[dict[str, Any]]: ...

    async def uncounted_among(self, events: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]: ...

    async def missing(self, event_ids: Sequence[str]) -> list[str]: ...

    async def page_of_counters(self, after_id: str) -> list[dict[str, Any]]: ...

    async def page_of_rollups(self, after_id: str) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class Reconciliation:
    """`moving` counts the tenants that could not be compared in any of the `attempts`, made within `tried_seconds`."""

    events: int = 0
    uncounted: int = 0
    tenants: int = 0
    moving: int = 0
    differences: list[Difference] = field(default_factory=list)
    attempts: int = 1
    tried_seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return not self.differences and not self.uncounted


@dataclass
class _Recount:
    """One reading. `moved`: old events were removed meanwhile, so that nothing can be said of it."""

    cut: ConsistentCut
    increments: Increments = field(default_factory=Increments)
    events: int = 0
    uncounted: list[str] = field(default_factory=list)
    being_sealed: list[LedgerEvent] = field(default_factory=list)
    moved: bool = False

    def take(
        self, page: Sequence[Mapping[str, Any]], uncounted: Sequence[Mapping[str, Any]], taken: AbstractSet[str]
    ) -> None:
        """Adds a page of events. `uncounted` are some of them; `taken` are ids of events that are just being sealed."""
        self.events += len(page)
        self.uncounted += [event["_id"] for event in uncounted]
        self.being_sealed += [LedgerEvent.from_document(event) for event in page if event["_id"] in taken]
        left = [event for event in page if event["_id"] not in taken]
        self.increments.add(self.cut.increments_of(left, {int(event["batchId"]) for event in uncounted}))

    @property
    def tenants(self) -> int:
        of_counters = {key.tenant_id for key in self.cut.counters.keys() | self.increments.counters.keys()}
        return len(of_counters | {key.tenant_id for key in self.cut.rollups})

    def differences(self) -> list[Difference]:
        if self.moved:
            return []
        return [
            *counter_differences(self.increments, self.cut.counters.values()),
            *rollup_differences(self.increments, self.cut.rollups.values()),
        ]


async def reconcile(
    ledger: StoredLedger, attempts: int = ATTEMPTS, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> Reconciliation:
    """Compares every tenant, whatever is counted meanwhile, and reads again while it finds a difference.

    Events that wait to be counted are looked at again; those that still wait in the end are reported as uncounted.
    Meanwhile no old events are removed; when some were, during every reading, no tenant is compared.
    """
    try:
        return await _reconcile(ledger, attempts, sleep)
    finally:
        await ledger.sealed.pause(now_utc())


async def _reconcile(ledger: StoredLedger, attempts: int, sleep: Callable[[float], Awaitable[None]]) -> Reconciliation:
    began = monotonic()
    for attempt in range(1, attempts + 1):
        recount = await _read(ledger)
        differences = recount.differences()
        if attempt == attempts or not (recount.moved or differences):
            break
        await sleep(_PAUSE_SECONDS)
    tried_seconds = monotonic() - began
    uncounted = recount.uncounted
    # In all 24 s: the lease of a process that died runs out, and another one starts, within that time.
    for _ in range(_LOOKS_PER_ATTEMPT * (attempts - 1)):
        if not uncounted:
            break
        await sleep(_PAUSE_SECONDS)
        uncounted = await ledger.missing(uncounted)
    return Reconciliation(
        events=recount.events,
        uncounted=len(uncounted),
        tenants=recount.tenants,
        moving=recount.tenants if recount.moved else 0,
        differences=differences,
        attempts=attempt,
        tried_seconds=tried_seconds,
    )


async def _read(ledger: StoredLedger) -> _Recount:
    pause = NoSealing(ledger.sealed)
    await pause.hold()
    sealing = await ledger.sealed.sealing()
    # In this order: what had been closed, then what has to contain it, then the events.
    began = await ledger.progress()
    counters = counter_documents([document async for document in all_of(ledger.page_of_counters)])
    rollups = rollup_documents([document async for document in all_of(ledger.page_of_rollups)])
    recount = _Recount(ConsistentCut(began, counters, rollups))
    after_id = ""
    while page := await ledger.page_of_events(after_id):
        after_id = page[-1]["_id"]
        recount.take(page, await ledger.uncounted_among(page), set(sealing.event_ids))
        await pause.hold()
    recount.increments.add(await sealed_increments(ledger.sealed, sealing, recount.being_sealed))
    after = await ledger.sealed.sealing()
    recount.moved = (after.number, after.state) != (sealing.number, sealing.state)
    return recount
