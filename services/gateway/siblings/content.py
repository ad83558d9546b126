"""Where content of upgrades is beside the gateway's own store, as far as it can be erased there."""

import httpx
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.gateway.siblings.upgrader import sent_twice_if_cut
from services.gateway.upgrades.erasure import HolderUnavailable
from shared.contracts import redis_keys
from shared.contracts.internal_http import INTERNAL_TOKEN_HEADER

_TIMEOUT = httpx.Timeout(5.0, connect=1.0)
_LIMITS = httpx.Limits(max_connections=16)


class ServiceContent:
    """What another service has of upgrades, over its internal HTTP. Component."""

    def __init__(self, base_url: str, internal_token: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=base_url, timeout=_TIMEOUT, limits=_LIMITS, headers={INTERNAL_TOKEN_HEADER: internal_token}
        )

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        await self._http.aclose()

    async def erase(self, tenant_id: str, upgrade_id: str) -> bool:
        path, params = f"/internal/upgrades/{upgrade_id}", {"tenantId": tenant_id}
        try:
            answer = await sent_twice_if_cut(lambda: self._http.delete(path, params=params))
        except httpx.HTTPError as error:
            raise HolderUnavailable(type(error).__name__) from None
        if answer.status_code not in (204, 404):
            raise HolderUnavailable(f"status {answer.status_code}")
        return answer.status_code == 204


class EventStreamContent:
    """The event streams of upgrades in Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def erase(self, tenant_id: str, upgrade_id: str) -> bool:
        try:
            deleted: int = await self._redis.delete(redis_keys.upgrade_events(tenant_id, upgrade_id))
        except (RedisError, OSError, TimeoutError) as error:
            raise HolderUnavailable(type(error).__name__) from None
        return deleted > 0
