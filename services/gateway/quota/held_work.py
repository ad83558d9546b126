"""Work that holds quota, upgrades and documents alike: its hold, its usage, and the ports to its records."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from services.gateway.quota.holds import NOTHING, HoldChange, HoldSettlement, HoldSize
from shared.contracts.admission_state import StoredHold, to_ms
from shared.contracts.contract import Contract, derived_id
from shared.contracts.upgrade_results import UpgradeResult, UpgradeStatus

WORK_ENDS_WITHIN = timedelta(seconds=10)
"""How long after its deadline a stage may still call the model, to finish what it has begun."""
CHECK_AGAIN_AFTER = timedelta(seconds=30)
DELIVERED = frozenset({UpgradeStatus.UPGRADED, UpgradeStatus.CACHED})
_ENDED_DURING_A_STAGE = frozenset({"deadline_exceeded", "expired", "unprocessable"})


class Spent(Contract):
    """The amounts that one usage event adds to the counters."""

    event_id: str
    upgrades: int = 0
    tokens: int = 0
    embeddings: int = 0


@dataclass(frozen=True)
class HeldWork:
    """An upgrade or the indexing of a document, as its record describes it.

    `size` is the hold it was admitted with; after `expires_at` the work can use nothing more. `spent` is known once it
    has `ended`. If it was `cut_short`, ended while a stage may have been running, `spent` is incomplete, and `unknown`
    is the most that the remaining usage can be. `end_event` is the id of the event that reports an upgrade's end.
    """

    hold_id: str
    size: HoldSize
    expires_at: datetime
    ended: bool
    spent: tuple[Spent, ...] = ()
    cut_short: bool = False
    unknown: HoldSize = NOTHING
    end_event: str | None = None

    def events(self) -> list[str]:
        """The ids of the events whose counting decides what is left of the hold."""
        if self.ended:
            return [item.event_id for item in self.spent]
        return [self.end_event] if self.end_event else []

    def left(self, missing: AbstractSet[str]) -> HoldSize:
        """What is left of the hold, given counters that include all of its events but the `missing` ones."""
        if not self.ended:
            in_counters = self.end_event is not None and self.end_event not in missing
            return HoldSize(0 if in_counters else self.size.upgrades, self.size.tokens, self.size.embeddings)
        uncounted = _sum_of(item for item in self.spent if item.event_id in missing)
        return HoldSize(
            uncounted.upgrades,
            uncounted.tokens + self.unknown.tokens,
            uncounted.embeddings + self.unknown.embeddings,
        )

    def is_counted(self, missing: AbstractSet[str]) -> bool:
        """Whether all usage of the work is known and counted."""
        return self.ended and not self.cut_short and not any(item.event_id in missing for item in self.spent)

    def settlement(self) -> HoldSettlement:
        """The real usage of ended work."""
        spent = _sum_of(self.spent)
        return HoldSettlement(self.hold_id, spent.upgrades, spent.tokens, spent.embeddings)

    def change(self, missing: AbstractSet[str], now: datetime) -> HoldChange | None:
        """The change of its hold that goes with the newer counters; None when nothing changes."""
        left, due_ms = self.left(missing), to_ms(self._next_check(now))
        if self.ended:
            return HoldChange(self.hold_id, "left", left.upgrades, left.tokens, left.embeddings, due_ms)
        if left.upgrades != self.size.upgrades:
            return HoldChange(self.hold_id, "counted", due_ms=due_ms)
        # Due, but its record is open. It may have ended without a notification, so the hold stays.
        return HoldChange(self.hold_id, "keep", due_ms=due_ms) if now >= self.expires_at else None

    def stored_hold(self, missing: AbstractSet[str], now: datetime) -> StoredHold | None:
        """Its hold in a rebuilt state; None when nothing is left of it."""
        left = self.left(missing)
        if self.ended and left == NOTHING:
            return None
        return StoredHold(
            hold_id=self.hold_id,
            upgrades=left.upgrades,
            tokens=left.tokens,
            embeddings=left.embeddings,
            ended=self.ended,
            counted=left.upgrades != self.size.upgrades,
            due=self._next_check(now),
        )

    def _next_check(self, now: datetime) -> datetime:
        again = now + CHECK_AGAIN_AFTER
        return again if self.ended else max(self.expires_at, again)


@dataclass(frozen=True)
class EndedUpgrade:
    """The end of an upgrade, as far as its hold and its record need it. `cut_short` and `spent` as in HeldWork."""

    upgrade_id: str
    tenant_id: str
    period: str
    outcome: UpgradeStatus
    spent: tuple[Spent, ...]
    cut_short: bool

    @staticmethod
    def of(result: UpgradeResult) -> "EndedUpgrade":
        return EndedUpgrade(
            upgrade_id=result.upgrade_id,
            tenant_id=result.tenant_id,
            period=result.period,
            outcome=result.status,
            spent=tuple(spent_by(result)),
            cut_short=result.error is not None and result.error.code in _ENDED_DURING_A_STAGE,
        )

    def settlement(self) -> HoldSettlement:
        """The usage known at the end; an upgrade that was cut short keeps its held tokens and embeddings."""
        spent = _sum_of(self.spent)
        if self.cut_short:
            return HoldSettlement(self.upgrade_id, spent.upgrades, None, None)
        return HoldSettlement(self.upgrade_id, spent.upgrades, spent.tokens, spent.embeddings)


def spent_by(result: UpgradeResult) -> list[Spent]:
    """The usage events of an ended upgrade: its end, and one for each operation.

    Operations are numbered per component, like the stages number them, so that the event ids agree.
    """
    spent = [Spent(event_id=end_event_of(result.upgrade_id), upgrades=int(result.status in DELIVERED))]
    numbers: Counter[str] = Counter()
    for used in result.usage:
        event_id = derived_id(result.upgrade_id, used.component, used.operation, str(numbers[used.component]))
        numbers[used.component] += 1
        spent.append(Spent(event_id=event_id, tokens=used.tokens_in + used.tokens_out, embeddings=used.embeddings))
    return spent


def end_event_of(upgrade_id: str) -> str:
    """The id of the event that reports the end of the upgrade."""
    return derived_id(upgrade_id, "completed")


def changes_of(works: Sequence[HeldWork], missing: AbstractSet[str], now: datetime) -> list[HoldChange]:
    return [change for work in works if (change := work.change(missing, now)) is not None]


def all_events(works: Iterable[HeldWork]) -> list[str]:
    return [event_id for work in works for event_id in work.events()]


def _sum_of(spent: Iterable[Spent]) -> HoldSize:
    upgrades = tokens = embeddings = 0
    for item in spent:
        upgrades, tokens, embeddings = upgrades + item.upgrades, tokens + item.tokens, embeddings + item.embeddings
    return HoldSize(upgrades, tokens, embeddings)


class WorkRecords(Protocol):
    """Records of one kind of work. Every method may raise StorageUnavailable."""

    async def unfinished(self, tenant_id: str, period: str, limit: int) -> list[HeldWork]:
        """At most `limit` works that are open, and as many that have ended uncounted; oldest first."""

    async def with_hold(self, hold_ids: Sequence[str]) -> list[HeldWork]:
        """The work of these holds; holds without a record are left out."""

    async def mark_counted(self, hold_ids: Sequence[str]) -> None:
        """Marks this work as finished: usage has counted all of its events."""

    async def uncounted_tenants(self) -> set[tuple[str, str]]:
        """Tenant and period of all work that has ended and is not counted."""


class RateRecords(Protocol):
    async def rates(self, tenant_id: str, since: datetime) -> dict[str, dict[str, int]]:
        """For each user or credential, the upgrades accepted since then, by id, with their times in ms.

        Raises StorageUnavailable.
        """


class UnfinishedWork:
    """The records of all kinds of work together. Every method may raise StorageUnavailable."""

    def __init__(self, *kinds: WorkRecords) -> None:
        self._kinds = kinds

    async def of(self, tenant_id: str, period: str, limit: int) -> list[HeldWork]:
        """Unfinished work of a tenant and period, of each kind as much as WorkRecords.unfinished returns."""
        found = await asyncio.gather(*(kind.unfinished(tenant_id, period, limit) for kind in self._kinds))
        return [work for some in found for work in some]

    async def with_hold(self, hold_ids: Sequence[str]) -> list[HeldWork]:
        found = await asyncio.gather(*(kind.with_hold(hold_ids) for kind in self._kinds))
        return [work for some in found for work in some]

    async def mark_counted(self, hold_ids: Sequence[str]) -> None:
        if hold_ids:
            await asyncio.gather(*(kind.mark_counted(hold_ids) for kind in self._kinds))

    async def uncounted_tenants(self) -> set[tuple[str, str]]:
        found = await asyncio.gather(*(kind.uncounted_tenants() for kind in self._kinds))
        return set().union(*found)
