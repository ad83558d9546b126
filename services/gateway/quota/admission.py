"""The port of admission: what is asked with each upgrade, and what is answered, whichever store keeps the state."""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol

from services.gateway.quota.holds import HoldSize
from shared.contracts.quota import Meter, Plan

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


@dataclass(frozen=True)
class Hold:
    """What an upgrade may come to use, booked to `period` (`YYYY-MM`), and the idempotency key that comes with it.

    After `expires_at` it cannot cost anything more. `subject` is whose rate it counts for: a user of the tenant, or the
    credential where nobody is named.
    """

    tenant_id: str
    upgrade_id: str
    period: str
    size: HoldSize
    expires_at: datetime
    subject: str
    key_hash: str | None = None
    body_hash: str | None = None


@dataclass(frozen=True)
class Rate:
    """How far the caller's rate is used: `limit` in `window_seconds`, `remaining`, and when the first place frees."""

    limit: int
    remaining: int
    frees_seconds: int
    window_seconds: int = 60

    @staticmethod
    def of(state: RateState, limit: int) -> "Rate | None":
        """None where there is no limit."""
        if limit == 0:
            return None
        return Rate(limit, max(0, limit - state.accepted), -(-state.frees_ms // 1000))

    def headers(self) -> dict[str, str]:
        """What the client is told of it."""
        return {
            "RateLimit": f'"user";r={self.remaining};t={self.frees_seconds}',
            "RateLimit-Policy": f'"user";q={self.limit};w={self.window_seconds}',
        }


@dataclass(frozen=True)
class Claim:
    """Who had the idempotency key before, and with which body."""

    upgrade_id: str
    body_hash: str


@dataclass(frozen=True)
class Admission:
    """Admitted at `at` (monotonic seconds), or already claimed by an earlier request, and then nothing was taken."""

    at: float
    rate: Rate | None
    claim: Claim | None = None


class Admissions(Protocol):
    async def admit(self, hold: Hold) -> Admission:
        """Takes the hold, unless its key is claimed. Raises ProblemError (rate_limited, quota_exceeded, unavailable)
        and takes nothing."""

    def release(self, hold: Hold) -> None:
        """Gives back a hold whose upgrade was not recorded, soon and in the background."""

    async def forget(self, hold: Hold, claim: Claim) -> None:
        """Frees the key of a claim that nothing was recorded for. Raises ProblemError (unavailable)."""

    def restore(self, hold: Hold, claim: Claim, life: timedelta) -> None:
        """The hold's key belongs to an earlier request by the records: says so from now on, in the background."""


class OpenAdmissions:
    """Admits everybody: for a gateway whose only tenant has no limits."""

    async def admit(self, hold: Hold) -> Admission:
        return Admission(time.monotonic(), None)

    def release(self, hold: Hold) -> None: ...

    async def forget(self, hold: Hold, claim: Claim) -> None: ...

    def restore(self, hold: Hold, claim: Claim, life: timedelta) -> None: ...
