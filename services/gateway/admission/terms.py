"""The words in which admission is asked and answered, whoever keeps its state."""

from dataclasses import dataclass
from typing import Literal

from services.gateway.admission.holds import HoldSize
from shared.contracts.plans import Meter, Plan

Verdict = Literal["admitted", "replay", "cold", "rate_limited", "quota_exceeded"]
Installed = Literal["installed", "warm", "lost"]
Confirmed = Literal["confirmed", "old", "cold"]
WhatIsLeft = Literal["left", "drop", "counted", "keep"]


@dataclass(frozen=True)
class RateState:
    """How many were accepted within the window, and in how many ms the first of them leaves it."""

    accepted: int
    frees_ms: int


@dataclass(frozen=True)
class MeterState:
    """One meter of a tenant in a period. `limit` is None when unlimited."""

    meter: Meter
    limit: int | None
    used: int
    held: int

    @property
    def remaining(self) -> int | None:
        return None if self.limit is None else max(0, self.limit - self.used - self.held)


@dataclass(frozen=True)
class Admit:
    """What admit is asked. Times are ms since 1970; `most_accepted` 0 is no rate limit; a key comes with a body.

    `rate_now_ms` 0 takes the rate by Redis's clock.
    """

    tenant_id: str
    period: str
    hold_id: str
    size: HoldSize
    now_ms: int
    due_ms: int
    subject: str = ""
    most_accepted: int = 0
    key_hash: str | None = None
    body_hash: str = ""
    rate_now_ms: int = 0


@dataclass(frozen=True)
class Admitted:
    """What admit answered. `due` are holds whose records are to be looked at."""

    verdict: Verdict
    rate: RateState
    due: tuple[str, ...] = ()
    meter: MeterState | None = None
    claimed_by: str = ""
    claimed_body: str = ""


@dataclass(frozen=True)
class Settled:
    """What ended work really used; None keeps the worst case of the hold."""

    hold_id: str
    upgrades: int
    tokens: int | None
    embeddings: int | None


@dataclass(frozen=True)
class HoldChange:
    """What a newer count means for one hold; see confirm.lua."""

    hold_id: str
    what: WhatIsLeft
    upgrades: int = 0
    tokens: int = 0
    embeddings: int = 0
    due_ms: int = 0


@dataclass(frozen=True)
class InstalledHold:
    """A hold of a state that is put in place anew."""

    hold_id: str
    size: HoldSize
    ended: bool
    counted: bool
    due_ms: int


@dataclass(frozen=True)
class QuotaState:
    """A tenant's state as of one moment."""

    plan: Plan
    meters: tuple[MeterState, ...]
    version: int
    due: tuple[str, ...]
