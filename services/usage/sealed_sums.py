"""What the events come to that were removed from the ledger, and those that are just being removed, each once."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from services.usage.comparison import amounts_in
from services.usage.consistent_cut import rollup_key
from services.usage.increments import CounterKey, Increments, increments_of
from services.usage.ledger_event import LedgerEvent
from services.usage.retention import Sealing
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
