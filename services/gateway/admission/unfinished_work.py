"""All work of a tenant in a period that holds something, wherever its records are kept."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from services.gateway.admission.held_work import HeldWork


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
