"""Reads the states of admission from Redis. The gateway writes them; `shared/contracts/redis_keys.py` says how."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.usage.admission_check import AdmissionUnreachable, Amounts, StoredAdmission, StoredHold
from services.usage.increments import CounterKey
from shared.contracts import redis_keys
from shared.contracts.plans import Meter

_SCAN_AT_ONCE = 500
_METERS = tuple(Meter)


class RedisAdmissionStates:
    """`AdmissionStates` of `admission_check`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def states(self) -> tuple[list[StoredAdmission], datetime]:
        try:
            run_id = (await self._redis.info("server"))["run_id"]
            found: list[StoredAdmission] = []
            async for name in self._redis.scan_iter(match=redis_keys.ADMISSION_COUNTERS, count=_SCAN_AT_ONCE):
                key = redis_keys.admission_tenant_and_period(name.decode())
                state = await self._state(CounterKey(*key), run_id) if key else None
                if state is not None:
                    found.append(state)
            seconds, microseconds = await self._redis.time()
        except (RedisError, OSError, TimeoutError) as error:
            raise AdmissionUnreachable(type(error).__name__) from error
        return found, datetime.fromtimestamp(seconds + microseconds / 1e6, UTC)

    async def _state(self, key: CounterKey, run_id: str) -> StoredAdmission | None:
        """None for what a Redis before this one has left: it is made anew before anybody is admitted by it."""
        async with self._redis.pipeline(transaction=True) as together:
            together.hgetall(redis_keys.admission_counters(*key))
            together.hgetall(redis_keys.admission_holds(*key))
            together.zrange(redis_keys.admission_due(*key), 0, -1, withscores=True)
            fields, holds, due = await together.execute()
        if fields.get(b"run", b"").decode() != run_id:
            return None
        times = {hold_id: datetime.fromtimestamp(score / 1000, UTC) for hold_id, score in due}
        return StoredAdmission(
            key=key,
            version=int(fields[b"v"]),
            base=_amounts(fields, "b"),
            sums=_amounts(fields, "h"),
            holds=tuple(
                StoredHold(hold_id.decode(), _amounts_of_hold(text.decode()), times.get(hold_id))
                for hold_id, text in holds.items()
            ),
        )


def _amounts(fields: Mapping[bytes, Any], prefix: str) -> Amounts:
    return {meter: int(fields[(prefix + meter.value[0]).encode()]) for meter in _METERS}


def _amounts_of_hold(text: str) -> Amounts:
    return dict(zip(_METERS, (int(part) for part in text.split(",")[: len(_METERS)]), strict=True))
