"""The admission states that the gateway keeps in Redis, as reconciling reads them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.usage.counting.increments import CounterKey
from shared.contracts import redis_keys
from shared.contracts.quota import Meter
from shared.storage.opening import redis_now

Amounts = Mapping[Meter, int]


@dataclass(frozen=True)
class StoredHold:
    """One hold; `due` is when it is looked at next, None when nothing says so. `ended`: what it stands for is over."""

    hold_id: str
    amounts: Amounts
    due: datetime | None
    ended: bool


@dataclass(frozen=True)
class StoredAdmission:
    """The state of one tenant and period, as of one moment. `base` are the counters it knew last, at `version`."""

    key: CounterKey
    version: int
    base: Amounts
    sums: Amounts
    holds: tuple[StoredHold, ...]

    def held(self, meter: Meter) -> int:
        """All its holds, one by one."""
        return sum(hold.amounts[meter] for hold in self.holds)


class AdmissionStates(Protocol):
    """Both raise AdmissionUnreachable."""

    async def states(self) -> tuple[list[StoredAdmission], datetime]:
        """Every state that is in force, and Redis's own time at which the last of them was read."""

    async def state(self, key: CounterKey) -> StoredAdmission | None:
        """One of them, as it is now; None when it is not in force."""


class AdmissionUnreachable(Exception):
    """Redis does not answer; the text says no more than how."""


_SCAN_AT_ONCE = 500
_METERS = tuple(Meter)


class RedisAdmissionStates:
    """`AdmissionStates` of `admission_state`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def states(self) -> tuple[list[StoredAdmission], datetime]:
        found: list[StoredAdmission] = []
        with _unreachable():
            async for name in self._redis.scan_iter(match=redis_keys.ADMISSION_COUNTERS, count=_SCAN_AT_ONCE):
                key = redis_keys.admission_tenant_and_period(name.decode())
                state = await self._state(CounterKey(*key)) if key else None
                if state is not None:
                    found.append(state)
            return found, await redis_now(self._redis)

    async def state(self, key: CounterKey) -> StoredAdmission | None:
        with _unreachable():
            return await self._state(key)

    async def _state(self, key: CounterKey) -> StoredAdmission | None:
        """None for what a Redis before this one has left: it is made anew before anybody is admitted by it."""
        async with self._redis.pipeline(transaction=True) as together:
            # Asked with the rest: between two questions Redis may be another one.
            together.info("server")
            together.hgetall(redis_keys.admission_counters(*key))
            together.hgetall(redis_keys.admission_holds(*key))
            together.zrange(redis_keys.admission_due(*key), 0, -1, withscores=True)
            server, fields, holds, due = await together.execute()
        if fields.get(b"run", b"").decode() != server["run_id"]:
            return None
        times = {hold_id: datetime.fromtimestamp(score / 1000, UTC) for hold_id, score in due}
        return StoredAdmission(
            key=key,
            version=int(fields[b"v"]),
            base=_amounts(fields, "b"),
            sums=_amounts(fields, "h"),
            holds=tuple(_hold(hold_id.decode(), text.decode(), times.get(hold_id)) for hold_id, text in holds.items()),
        )


def _amounts(fields: Mapping[bytes, Any], prefix: str) -> Amounts:
    return {meter: int(fields[(prefix + meter.value[0]).encode()]) for meter in _METERS}


def _hold(hold_id: str, text: str, due: datetime | None) -> StoredHold:
    """`text` is `upgrades,tokens,embeddings,ended,counted`."""
    parts = text.split(",")
    amounts = dict(zip(_METERS, (int(part) for part in parts[: len(_METERS)]), strict=True))
    return StoredHold(hold_id, amounts, due, ended=parts[len(_METERS)] == "1")


@contextmanager
def _unreachable() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise AdmissionUnreachable(type(error).__name__) from error
