"""Finds holds whose time has come at tenants that nobody asks for: left by a replica that ended between two steps."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

from redis.asyncio import Redis

from services.gateway.quota.settlement import Settlement
from services.gateway.quota.usage_client import UsageUnavailable
from shared.contracts.redis_keys import ADMISSION_DUE, DUE_SWEEP, due_tenant_and_period

_ONE_REPLICA_FOR_SECONDS = 20
_LOOK_WITHIN_SECONDS = 15.0
_NAMES_AT_ONCE = 500
_MOST_DUE = 1_000


class DueHolds:
    """Of all replicas, one at a time looks. `clock` gives seconds since 1970."""

    def __init__(self, redis: Redis, settlement: Settlement, *, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._settlement = settlement
        self._clock = clock

    async def sweep(self) -> int:
        """One round; gives how many tenants had some. Raises RedisError, StorageUnavailable, AdmissionUnavailable
        and TimeoutError."""
        if not await self._redis.set(DUE_SWEEP, b"1", nx=True, ex=_ONE_REPLICA_FOR_SECONDS):
            return 0
        async with asyncio.timeout(_LOOK_WITHIN_SECONDS):
            found, pause = await self._look_at_all()
            if pause:
                # What seems to be nobody's is looked at once more: one pause for all tenants.
                await asyncio.sleep(pause)
                await self._look_at_all()
        return found

    async def _look_at_all(self) -> tuple[int, float]:
        """How many tenants had some, and after how many seconds to look again."""
        found, pause = 0, 0.0
        async for name in self._redis.scan_iter(match=ADMISSION_DUE, count=_NAMES_AT_ONCE):
            due = await self._look_at(name)
            found += bool(due)
            pause = max(pause, self._settlement.sure_in_seconds(due))
        return found, pause

    async def _look_at(self, name: bytes) -> list[str]:
        """The holds whose time has come."""
        tenant = due_tenant_and_period(name.decode())
        if tenant is None:
            return []
        found: list[Any] = await self._redis.zrangebyscore(
            name, "-inf", round(self._clock() * 1000), start=0, num=_MOST_DUE
        )
        due = [hold_id.decode() for hold_id in found]
        if due:
            # Without usage only what was never recorded is given back.
            with contextlib.suppress(UsageUnavailable):
                await self._settlement.refresh(*tenant, due)
        return due
