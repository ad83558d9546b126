"""Recounts the ledger and compares, also while events are being counted and old ones removed."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from services.usage.comparison import Difference, amounts_in, counter_differences, rollup_differences
from services.usage.increments import CounterKey, Increments, RollupKey, increments_of
from services.usage.ledger_event import LedgerEvent
from services.usage.retention import Sealing
from shared.contracts.contract import format_utc, now_utc

ATTEMPTS = 5
FORGOTTEN_AFTER_SECONDS = 60
_PAUSE_SECONDS = 2.0
_NO_SEALING_FOR = timedelta(minutes=15)

Page = Callable[[str], Awaitable[list[dict[str, Any]]]]


class SealedSums(Protocol):
    """What is kept of the events that were removed."""

    async def sealing(self) -> Sealing: ...

    async def pause(self, until: datetime) -> None: ...

    async def page_of_sealed_counters(self, after_id: str) -> list[dict[str, Any]]: ...

    async def page_of_sealed_rollups(self, after_id: str) -> list[dict[str, Any]]: ...


class StoredLedger(Protocol):
    """Everything of the ledger, by pages in the order of ids."""

    @property
    def sealed(self) -> SealedSums: ...

    async def page_of_events(self, after_id: str) -> list[dict[str, Any]]: ...

    async def uncounted_among(self, events: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]: ...

    async def page_of_counters(self, after_id: str) -> list[dict[str, Any]]: ...

    async def page_of_rollups(self, after_id: str) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class Reconciliation:
    """`moving` counts the tenants that changed at every attempt and so were not compared."""

    events: int = 0
    uncounted: int = 0
    tenants: int = 0
    moving: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.differences and not self.uncounted


@dataclass
class _Recount:
    increments: Increments = field(default_factory=Increments)
    events: int = 0
    uncounted_of: dict[str, int] = field(default_factory=dict)
    forgotten: int = 0
    being_sealed: list[LedgerEvent] = field(default_factory=list)


async def reconcile(
    ledger: StoredLedger, attempts: int = ATTEMPTS, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> Reconciliation:
    """Compares every tenant whose numbers held still while the ledger was read; tries again for the others.

    A tenant holds still when the versions of its counters are the same before and after, its rollups too, and none
    of its events is waiting to be counted. Events that still wait at the last attempt, while their tenant's numbers
    hold still or for longer than counting ever takes, are reported as uncounted. Meanwhile no old events are removed.
    """
    await ledger.sealed.pause(now_utc() + _NO_SEALING_FOR)
    try:
        return await _reconcile(ledger, attempts, sleep)
    finally:
        await ledger.sealed.pause(now_utc())


async def _reconcile(ledger: StoredLedger, attempts: int, sleep: Callable[[float], Awaitable[None]]) -> Reconciliation:
    attempt = 1
    while True:
        sealing = await ledger.sealed.sealing()
        before = await _snapshot(ledger)
        recount = await _recount(ledger, sealing)
        after = await _snapshot(ledger)
        everybody = after.keys() | {key.tenant_id for key in recount.increments.counters}
        moved = {tenant for tenant in before.keys() | after.keys() if before.get(tenant) != after.get(tenant)}
        if _step_of(await ledger.sealed.sealing()) != _step_of(sealing):
            moved |= everybody
        unsettled = moved | recount.uncounted_of.keys()
        differences = [difference for difference in _differences(recount, after) if difference.tenant_id not in moved]
        clean = not unsettled and not differences
        if clean or attempt == attempts:
            left = {tenant: n for tenant, n in recount.uncounted_of.items() if tenant not in moved}
            return Reconciliation(
                events=recount.events,
                uncounted=sum(left.values()) + recount.forgotten,
                tenants=len(everybody),
                moving=len(moved),
                differences=[found for found in differences if found.tenant_id not in recount.uncounted_of],
            )
        attempt += 1
        await sleep(_PAUSE_SECONDS)


Snapshot = dict[str, dict[str, dict[str, Any]]]


async def _snapshot(ledger: StoredLedger) -> Snapshot:
    """All counter and rollup documents by tenant and id."""
    stored: Snapshot = {}
    for page in (ledger.page_of_counters, ledger.page_of_rollups):
        async for document in _all(page):
            stored.setdefault(document["tenantId"], {})[document["_id"]] = document
    return stored


async def _recount(ledger: StoredLedger, sealing: Sealing) -> _Recount:
    recount = _Recount()
    forgotten_before = format_utc(now_utc() - timedelta(seconds=FORGOTTEN_AFTER_SECONDS))
    taken = set(sealing.event_ids)
    after_id = ""
    while page := await ledger.page_of_events(after_id):
        after_id = page[-1]["_id"]
        recount.events += len(page)
        events = [LedgerEvent.from_document(document) for document in page]
        _merge(recount.increments, increments_of(event for event in events if event.event_id not in taken))
        recount.being_sealed += [event for event in events if event.event_id in taken]
        for document in await ledger.uncounted_among(page):
            if document["storedAt"] < forgotten_before:
                recount.forgotten += 1
            else:
                recount.uncounted_of[document["tenantId"]] = recount.uncounted_of.get(document["tenantId"], 0) + 1
    await _add_sealed(recount, ledger.sealed, sealing)
    return recount


async def _add_sealed(recount: _Recount, sealed: SealedSums, sealing: Sealing) -> None:
    """Adds what removed events come to, and what those come to that are just being removed, each once."""
    taking = increments_of(recount.being_sealed) if sealing.state == "adding" else Increments()
    async for document in _all(sealed.page_of_sealed_counters):
        counter = CounterKey(document["tenantId"], document["period"])
        _add(recount.increments.counters.setdefault(counter, {}), amounts_in(document))
        if document["sealedThrough"] >= sealing.number:
            taking.counters.pop(counter, None)
    async for document in _all(sealed.page_of_sealed_rollups):
        rollup = RollupKey(document["tenantId"], document["day"], document["origin"], document["kind"], document["key"])
        _add(recount.increments.rollups.setdefault(rollup, {}), amounts_in(document))
        if document["sealedThrough"] >= sealing.number:
            taking.rollups.pop(rollup, None)
    _merge(recount.increments, taking)


def _step_of(sealing: Sealing) -> tuple[int, str]:
    return sealing.number, sealing.state


def _merge(total: Increments, more: Increments) -> None:
    for counter, amounts in more.counters.items():
        _add(total.counters.setdefault(counter, {}), amounts)
    for rollup, amounts in more.rollups.items():
        _add(total.rollups.setdefault(rollup, {}), amounts)


def _add(sums: dict[str, int], amounts: Mapping[str, int]) -> None:
    for name, amount in amounts.items():
        sums[name] = sums.get(name, 0) + amount


def _differences(recount: _Recount, stored: Snapshot) -> list[Difference]:
    documents = [document for of_tenant in stored.values() for document in of_tenant.values()]
    return [
        *counter_differences(recount.increments, (document for document in documents if "period" in document)),
        *rollup_differences(recount.increments, (document for document in documents if "day" in document)),
    ]


async def _all(page_after: Page) -> AsyncIterator[dict[str, Any]]:
    after_id = ""
    while page := await page_after(after_id):
        after_id = page[-1]["_id"]
        for document in page:
            yield document
