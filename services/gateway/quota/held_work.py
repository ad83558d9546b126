"""Work that holds quota: what it has used, what usage has not counted yet, and where its records are."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from services.gateway.quota.admission import HoldChange, InstalledHold, Settled
from services.gateway.quota.holds import NOTHING, HoldSize
from shared.contracts.contract import Contract, derived_id
from shared.contracts.upgrade_results import UpgradeResult, UpgradeStatus

WORK_ENDS_WITHIN = timedelta(seconds=10)
"""After its deadline a stage may still finish what it has begun; later than this it asks no model any more."""
LOOK_AGAIN = timedelta(seconds=30)
DELIVERED = frozenset({UpgradeStatus.UPGRADED, UpgradeStatus.CACHED})
_ENDED_OVER_A_STAGE = frozenset({"deadline_exceeded", "expired", "unprocessable"})


class Spent(Contract):
    """What one event adds to the counters."""

    event_id: str
    upgrades: int = 0
    tokens: int = 0
    embeddings: int = 0


@dataclass(frozen=True)
class HeldWork:
    """An upgrade or the indexing of a document, with its hold.

    `spent` is known once it has `ended`. Of one that was `cut_short`, ended while a stage may have been at work, it is
    all that is known so far, and `unknown` is the worst case of the rest.
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
        """The ids of the events to ask the ledger about."""
        if self.ended:
            return [item.event_id for item in self.spent]
        return [self.end_event] if self.end_event else []

    def left(self, missing: AbstractSet[str]) -> HoldSize:
        """What it holds beside counters in which all its events are but the `missing`."""
        if not self.ended:
            in_counters = self.end_event is not None and self.end_event not in missing
            return HoldSize(0 if in_counters else self.size.upgrades, self.size.tokens, self.size.embeddings)
        open_ = [item for item in self.spent if item.event_id in missing]
        upgrades = sum(item.upgrades for item in open_)
        tokens, embeddings = sum(item.tokens for item in open_), sum(item.embeddings for item in open_)
        return HoldSize(upgrades, tokens + self.unknown.tokens, embeddings + self.unknown.embeddings)

    def is_counted(self, missing: AbstractSet[str]) -> bool:
        """Whether nothing of it is owed any more."""
        return self.ended and not self.cut_short and not any(item.event_id in missing for item in self.spent)

    def change(self, missing: AbstractSet[str], now: datetime) -> HoldChange | None:
        """What the newer counters mean for its hold."""
        left, look_again = self.left(missing), _ms(now + LOOK_AGAIN)
        if self.ended:
            return HoldChange(self.hold_id, "left", left.upgrades, left.tokens, left.embeddings, look_again)
        due = max(_ms(self.expires_at), look_again)
        if left.upgrades != self.size.upgrades:
            return HoldChange(self.hold_id, "counted", due_ms=due)
        # Past its time, but its record is open: it may have ended with nobody here to hear of it, and then it counts.
        return HoldChange(self.hold_id, "keep", due_ms=due) if now >= self.expires_at else None

    def to_install(self, missing: AbstractSet[str], now: datetime) -> InstalledHold | None:
        """Its hold in a state that is built anew; None when it needs none."""
        left = self.left(missing)
        if self.ended and left == NOTHING:
            return None
        due = _ms(now + LOOK_AGAIN) if self.ended else max(_ms(self.expires_at), _ms(now + LOOK_AGAIN))
        return InstalledHold(self.hold_id, left, self.ended, left.upgrades != self.size.upgrades, due)


def spent_by(result: UpgradeResult) -> list[Spent]:
    """The events of an ended upgrade: its end, and each operation, numbered per component as the stages do."""
    spent = [Spent(event_id=end_event_of(result.upgrade_id), upgrades=int(result.status in DELIVERED))]
    numbers: Counter[str] = Counter()
    for used in result.usage:
        event_id = derived_id(result.upgrade_id, used.component, used.operation, str(numbers[used.component]))
        numbers[used.component] += 1
        spent.append(Spent(event_id=event_id, tokens=used.tokens_in + used.tokens_out, embeddings=used.embeddings))
    return spent


def was_cut_short(result: UpgradeResult) -> bool:
    """Whether a stage may be at work still, although the upgrade has ended."""
    return result.error is not None and result.error.code in _ENDED_OVER_A_STAGE


@dataclass(frozen=True)
class EndedWork:
    """How an upgrade ended, as far as its hold and its record are concerned."""

    upgrade_id: str
    tenant_id: str
    period: str
    outcome: UpgradeStatus
    spent: tuple[Spent, ...]
    cut_short: bool

    @staticmethod
    def of(result: UpgradeResult) -> "EndedWork":
        return EndedWork(
            upgrade_id=result.upgrade_id,
            tenant_id=result.tenant_id,
            period=result.period,
            outcome=result.status,
            spent=tuple(spent_by(result)),
            cut_short=was_cut_short(result),
        )

    def settled(self) -> Settled:
        """What its hold becomes at once."""
        upgrades = sum(item.upgrades for item in self.spent)
        if self.cut_short:
            return Settled(self.upgrade_id, upgrades, None, None)
        tokens, embeddings = sum(item.tokens for item in self.spent), sum(item.embeddings for item in self.spent)
        return Settled(self.upgrade_id, upgrades, tokens, embeddings)


def end_event_of(upgrade_id: str) -> str:
    """The id of the event that tells how an upgrade ended."""
    return derived_id(upgrade_id, "completed")


def changes_of(works: Sequence[HeldWork], missing: AbstractSet[str], now: datetime) -> list[HoldChange]:
    return [change for work in works if (change := work.change(missing, now)) is not None]


def all_events(works: Iterable[HeldWork]) -> list[str]:
    return [event_id for work in works for event_id in work.events()]


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


class WorkRecords(Protocol):
    """Records of one kind of work. Every call may raise StorageUnavailable."""

    async def unfinished(self, tenant_id: str, period: str, limit: int) -> list[HeldWork]:
        """Work that is open, or whose events usage was not yet known to have counted; oldest first."""

    async def with_hold(self, hold_ids: Sequence[str]) -> list[HeldWork]:
        """The work of these holds, as far as there is a record of it."""

    async def counted(self, hold_ids: Sequence[str]) -> None:
        """Usage has counted all events of this work: it is finished."""

    async def uncounted_tenants(self) -> set[tuple[str, str]]:
        """Tenant and period of everything that has ended and was not counted."""


class RateRecords(Protocol):
    async def rates(self, tenant_id: str, since: datetime) -> dict[str, dict[str, int]]:
        """By user or credential: what was accepted since then, with its time in ms. Raises StorageUnavailable."""


class UnfinishedWork:
    """Upgrades and documents as one."""

    def __init__(self, *kinds: WorkRecords) -> None:
        self._kinds = kinds

    async def of(self, tenant_id: str, period: str, limit: int) -> list[HeldWork]:
        found = await asyncio.gather(*(kind.unfinished(tenant_id, period, limit) for kind in self._kinds))
        return [work for some in found for work in some]

    async def with_hold(self, hold_ids: Sequence[str]) -> list[HeldWork]:
        found = await asyncio.gather(*(kind.with_hold(hold_ids) for kind in self._kinds))
        return [work for some in found for work in some]

    async def counted(self, hold_ids: Sequence[str]) -> None:
        if hold_ids:
            await asyncio.gather(*(kind.counted(hold_ids) for kind in self._kinds))

    async def uncounted_tenants(self) -> set[tuple[str, str]]:
        found = await asyncio.gather(*(kind.uncounted_tenants() for kind in self._kinds))
        return set().union(*found)
