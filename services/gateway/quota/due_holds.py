"""Sweeps due holds of all tenants. It finds holds of crashed replicas at tenants that send no requests."""

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
_SWEEP_WITHIN_SECONDS = 15.0
_KEYS_PER_SCAN = 500
_MAX_DUE_PER_TENANT = 1_000


class DueHolds:
    """At any time at most one replica sweeps. `clock` returns seconds since 1970."""

    def __init__(self, redis: Redis, settlement: Settlement, *, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._settlement = settlement
        self._clock = clock

    async def sweep(self) -> int:
        """Refreshes every tenant with due holds; returns how many there were, 0 while another replica sweeps.

        Raises RedisError, StorageUnavailable, AdmissionUnavailable and TimeoutError.
        """
        if not await self._redis.set(DUE_SWEEP, b"1", nx=True, ex=_ONE_REPLICA_FOR_SECONDS):
            return 0
        async with asyncio.timeout(_SWEEP_WITHIN_SECONDS):
            tenants, due = await self._refresh_all()
            if await self._settlement.unrecorded.wait_for_second_check(due):
                await self._refresh_all()
        return tenants

    async def _refresh_all(self) -> tuple[int, list[str]]:
        """The number of tenants with due holds, and the ids of these holds."""
        tenants, all_due = 0, list[str]()
        async for key in self._redis.scan_iter(match=ADMISSION_DUE, count=_KEYS_PER_SCAN):
            due = await self._refresh_due(key)
            tenants += bool(due)
            all_due += due
        return tenants, all_due

    async def _refresh_due(self, key: bytes) -> list[str]:
        tenant = due_tenant_and_period(key.decode())
        if tenant is None:
            return []
        found: list[Any] = await self._redis.zrangebyscore(
            key, "-inf", round(self._clock() * 1000), start=0, num=_MAX_DUE_PER_TENANT
        )
        due = [hold_id.decode() for hold_id in found]
        if due:
            # Without usage, unrecorded holds are still dropped.
            with contextlib.suppress(UsageUnavailable):
                await self._settlement.refresh(*tenant, due)
        return due
