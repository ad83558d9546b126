"""The port of admission: takes and releases holds, claims idempotency keys, and reports rates and meters."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from services.gateway.quota.holds import Hold
from shared.contracts.quota import Meter, Plan

RATE_WINDOW_SECONDS = 60


@dataclass(frozen=True)
class RateState:
    """Accepted upgrades within the window, and the ms until the oldest of them leaves it."""

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
class QuotaState:
    """A tenant's plan and meters in a period at one moment. `due` are ids of holds that are due for a check."""

    plan: Plan
    meters: tuple[MeterState, ...]
    version: int
    due: tuple[str, ...]


@dataclass(frozen=True)
class Rate:
    """The caller's rate limit per window: the limit, what remains, and the seconds until the next place is free."""

    limit: int
    remaining: int
    frees_seconds: int

    @staticmethod
    def of(state: RateState, limit: int) -> "Rate | None":
        """None without a limit, which is a `limit` of 0."""
        if limit == 0:
            return None
        return Rate(limit, max(0, limit - state.accepted), -(-state.frees_ms // 1000))

    def headers(self) -> dict[str, str]:
        """The `RateLimit` headers of the answer."""
        return {
            "RateLimit": f'"user";r={self.remaining};t={self.frees_seconds}',
            "RateLimit-Policy": f'"user";q={self.limit};w={RATE_WINDOW_SECONDS}',
        }


@dataclass(frozen=True)
class Claim:
    """The request that an idempotency key belongs to: its upgrade id and the hash of its body."""

    upgrade_id: str
    body_hash: str


@dataclass(frozen=True)
class Admission:
    """Admitted at `at` (monotonic seconds). With a `claim` nothing was taken: the key belongs to an earlier request."""

    at: float
    rate: Rate | None
    claim: Claim | None = None


class Admissions(Protocol):
    async def admit(self, hold: Hold) -> Admission:
        """Takes the hold, unless its key is claimed. Raises ProblemError (rate_limited, quota_exceeded, unavailable),
        and takes nothing then."""

    def release(self, hold: Hold) -> None:
        """Releases the hold of an upgrade that was not recorded, and its key, in the background."""

    async def release_claim(self, hold: Hold, claim: Claim) -> None:
        """Frees the hold's key, if it still belongs to `claim`. Raises ProblemError (unavailable)."""

    def restore_claim(self, hold: Hold, claim: Claim, life: timedelta) -> None:
        """Gives the hold's key back to `claim` for `life`, in the background: the records say that it owns the key."""
