"""Clients of the services that process upgrades: they look up results and usage, and erase content."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import httpx
from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.gateway.quota.held_work import Spent
from services.gateway.upgrades.erasure import HolderUnavailable
from shared.contracts import redis_keys
from shared.contracts.internal_http import ResultLookup, ResultPage
from shared.contracts.quota import SpentEvents
from shared.contracts.upgrade_results import UpgradeResult
from shared.contracts.upgrade_tasks import Stage
from shared.service.internal_client import InternalClient

_LOOKUP_BATCH = 200
_USAGE_CONNECTIONS = 4


class ResultsUnavailable(Exception):
    """The upgrader did not answer."""


class StageUnavailable(Exception):
    """A stage did not answer."""


class StageUsageUnknown(Exception):
    """A stage answered with an error or an unreadable body."""


class UpgradeResults:
    """Results of upgrades by id, from the upgrader. Component."""

    def __init__(self, upgrader_url: str, internal_token: str) -> None:
        self._client = InternalClient(upgrader_url, internal_token)

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        await self._client.stop(grace_seconds)

    async def find(self, upgrade_id: str) -> UpgradeResult | None:
        """The result of one upgrade, or None while it has not ended. Raises ResultsUnavailable."""
        found = await self.among([upgrade_id])
        return found[0] if found else None

    async def among(self, upgrade_ids: Sequence[str]) -> list[UpgradeResult]:
        """The results of those of the upgrades that have ended. Raises ResultsUnavailable."""
        found: list[UpgradeResult] = []
        for start in range(0, len(upgrade_ids), _LOOKUP_BATCH):
            found += await self._look_up(upgrade_ids[start : start + _LOOKUP_BATCH])
        return found

    async def _look_up(self, upgrade_ids: Sequence[str]) -> list[UpgradeResult]:
        lookup = ResultLookup(upgrade_ids=list(upgrade_ids))
        try:
            answer = await self._client.request("POST", "/internal/upgrades/lookup", body=lookup)
            answer.raise_for_status()
            return ResultPage.model_validate_json(answer.content).items
        except (httpx.HTTPError, ValidationError) as error:
            raise ResultsUnavailable(type(error).__name__) from error


class StageSpending(Protocol):
    async def spent(self, stage: Stage, tenant_id: str, upgrade_id: str) -> list[Spent]:
        """The usage events that the stage has recorded. Raises StageUnavailable and StageUsageUnknown."""


class StageHttp:
    """`StageSpending` over internal HTTP. Component."""

    def __init__(self, urls: Mapping[Stage, str], internal_token: str) -> None:
        self._clients = {
            stage: InternalClient(url, internal_token, max_connections=_USAGE_CONNECTIONS)
            for stage, url in urls.items()
        }

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        for client in self._clients.values():
            await client.stop(grace_seconds)

    async def spent(self, stage: Stage, tenant_id: str, upgrade_id: str) -> list[Spent]:
        path, params = f"/internal/upgrades/{upgrade_id}/spent", {"tenantId": tenant_id}
        try:
            answer = await self._clients[stage].request("GET", path, params=params)
        except httpx.HTTPError as error:
            raise StageUnavailable(type(error).__name__) from None
        try:
            events = SpentEvents.model_validate_json(answer.raise_for_status().content).events
        except (httpx.HTTPStatusError, ValidationError) as error:
            raise StageUsageUnknown(type(error).__name__) from None
        return [Spent(event_id=event.event_id, tokens=event.tokens, embeddings=event.embeddings) for event in events]


class ServiceContent:
    """`ContentHolder` of another service, over internal HTTP. Component."""

    def __init__(self, base_url: str, internal_token: str) -> None:
        self._client = InternalClient(base_url, internal_token)

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        await self._client.stop(grace_seconds)

    async def erase(self, tenant_id: str, upgrade_id: str) -> bool:
        path, params = f"/internal/upgrades/{upgrade_id}", {"tenantId": tenant_id}
        try:
            answer = await self._client.request("DELETE", path, params=params)
        except httpx.HTTPError as error:
            raise HolderUnavailable(type(error).__name__) from None
        if answer.status_code not in (204, 404):
            raise HolderUnavailable(f"status {answer.status_code}")
        return answer.status_code == 204


class EventStreamContent:
    """`ContentHolder` of the event streams in Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def erase(self, tenant_id: str, upgrade_id: str) -> bool:
        try:
            deleted: int = await self._redis.delete(redis_keys.upgrade_events(tenant_id, upgrade_id))
        except (RedisError, OSError, TimeoutError) as error:
            raise HolderUnavailable(type(error).__name__) from None
        return deleted > 0
