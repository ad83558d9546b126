"""Whether a tenant may have one more upgrade. Asked with a hold before anything is recorded."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from services.gateway.caller import Caller
from shared.contracts.upgrade_tasks import Stage


@dataclass(frozen=True)
class Hold:
    """What an upgrade may come to use: the stages it goes through and the characters they are given.

    It stands until the upgrade has ended, at the latest until `expires_at`, and is booked to `period` (`YYYY-MM`).
    """

    upgrade_id: str
    period: str
    itinerary: tuple[Stage, ...]
    input_characters: int
    expires_at: datetime
    user_ref: str | None
    idempotency_key: str | None


class Admission(Protocol):
    async def admit(self, caller: Caller, hold: Hold) -> None:
        """Takes the hold. Raises ProblemError (rate_limited, quota_exceeded, unavailable) and takes nothing."""

    async def release(self, caller: Caller, hold: Hold) -> None:
        """Gives back a hold whose upgrade was not recorded."""


class OpenAdmission:
    """Admits everybody: for a gateway whose only tenant has no limits."""

    async def admit(self, caller: Caller, hold: Hold) -> None: ...

    async def release(self, caller: Caller, hold: Hold) -> None: ...
