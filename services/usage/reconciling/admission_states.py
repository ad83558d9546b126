"""Reads the gateway's admission states from Redis, for reconciliation with the ledger."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.usage.counting.increments import CounterKey
from shared.contracts import admission_state, redis_keys
from shared.contracts.admission_state import METERS, StoredHold, from_ms
from shared.contracts.quota import Meter
from shared.storage.opening import redis_now

_KEYS_PER_SCAN = 500

Amounts = Mapping[Meter, int]


class AdmissionUnreachable(Exception):
    """Redis does not answer. The text is the class of the underlying error."""


@dataclass(frozen=True)
class StoredAdmission:
    """The state of one tenant and period at one moment.

    `base` are usage's counters as the gateway last installed them, at `version`. `sums` are the stored sums of holds.
    """

    key: CounterKey
    version: int
    base: Amounts
    sums: Amounts
    holds: tuple[StoredHold, ...]

    def held(self, meter: Meter) -> int:
        """The sum of all holds on the meter, computed from the single holds."""
        return sum(hold.amounts[meter] for hold in self.holds)


class AdmissionStates(Protocol):
    """Both methods raise AdmissionUnreachable."""

    async def states(self) -> tuple[list[StoredAdmission], datetime]:
        """Every state in force, and Redis's time after the last of them was read."""

    async def state(self, key: CounterKey) -> StoredAdmission | None:
        """The current state of one tenant and period; None when none is in force."""


class RedisAdmissionStates:
    """`AdmissionStates` in Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def states(self) -> tuple[list[StoredAdmission], datetime]:
        found: list[StoredAdmission] = []
        with _redis_errors_as_unreachable():
            async for name in self._redis.scan_iter(match=redis_keys.ADMISSION_COUNTERS, count=_KEYS_PER_SCAN):
                key = redis_keys.admission_tenant_and_period(name.decode())
                state = await self._state(CounterKey(*key)) if key else None
                if state is not None:
                    found.append(state)
            return found, await redis_now(self._redis)

    async def state(self, key: CounterKey) -> StoredAdmission | None:
        with _redis_errors_as_unreachable():
            return await self._state(key)

    async def _state(self, key: CounterKey) -> StoredAdmission | None:
        """None also for a state of an earlier Redis process: the gateway rebuilds it before it admits by it."""
        async with self._redis.pipeline(transaction=True) as pipeline:
            # In the same transaction as the state: Redis may restart between two requests.
            pipeline.info("server")
            pipeline.hgetall(redis_keys.admission_counters(*key))
            pipeline.hgetall(redis_keys.admission_holds(*key))
            pipeline.zrange(redis_keys.admission_due(*key), 0, -1, withscores=True)
            server, raw_fields, holds, due_times = await pipeline.execute()
        fields = {name.decode(): value.decode() for name, value in raw_fields.items()}
        if fields.get(admission_state.RUN_FIELD) != server["run_id"]:
            return None
        due = {hold_id: from_ms(score) for hold_id, score in due_times}
        return StoredAdmission(
            key=key,
            version=int(fields[admission_state.VERSION_FIELD]),
            base={meter: int(fields[admission_state.counter_field(meter)]) for meter in METERS},
            sums={meter: int(fields[admission_state.held_field(meter)]) for meter in METERS},
            holds=tuple(
                StoredHold.from_text(hold_id.decode(), text.decode(), due.get(hold_id))
                for hold_id, text in holds.items()
            ),
        )


@contextmanager
def _redis_errors_as_unreachable() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise AdmissionUnreachable(type(error).__name__) from error
