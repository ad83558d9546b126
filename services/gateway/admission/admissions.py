"""Whether a tenant may have one more upgrade. Asked with a hold before anything is recorded."""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from services.gateway.admission.holds import HoldSize
from services.gateway.admission.terms import RateState


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
