"""Clients of the stages' internal HTTP: results, spending, and erasure."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import httpx
from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.gateway.quota.held_work import Spent
from services.gateway.upgrades.erasure import HolderUnavailable
from shared.contracts import redis_keys
from shared.contracts.internal_http import INTERNAL_TOKEN_HEADER, ResultLookup, ResultPage
from shared.contracts.quota import SpentEvents
from shared.contracts.upgrade_results import UpgradeResult
from shared.contracts.upgrade_tasks import Stage
from shared.service.internal_client import retry_once_on_disconnect

LOOKUP_BATCH = 200
_TIMEOUT = httpx.Timeout(5.0, connect=1.0)
_LOOKUP = "/internal/upgrades/lookup"
_JSON = {"Content-Type": "application/json"}
_LIMITS = httpx.Limits(max_connections=16)


class ResultsUnavailable(Exception):
    """The upgrader did not answer; ask again later."""


class UpgradeResults:
    """Results by id, over the upgrader's internal HTTP. Component."""

    def __init__(self, upgrader_url: str, internal_token: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=upgrader_url, timeout=_TIMEOUT, limits=_LIMITS, headers={INTERNAL_TOKEN_HEADER: internal_token}
        )

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        await self._http.aclose()

    async def find(self, upgrade_id: str) -> UpgradeResult | None:
        """The result of one upgrade, or None while it has not ended. Raises ResultsUnavailable."""
        found = await self.among([upgrade_id])
        return found[0] if found else None

    async def among(self, upgrade_ids: Sequence[str]) -> list[UpgradeResult]:
        """The results of those that have ended. Raises ResultsUnavailable."""
        found: list[UpgradeResult] = []
        for start in range(0, len(upgrade_ids), LOOKUP_BATCH):
            found += await self._lookup(upgrade_ids[start : start + LOOKUP_BATCH])
        return found

    async def _lookup(self, upgrade_ids: Sequence[str]) -> list[UpgradeResult]:
        question = ResultLookup(upgrade_ids=list(upgrade_ids)).to_json()
        try:
            answer = await retry_once_on_disconnect(lambda: self._http.post(_LOOKUP, content=question, headers=_JSON))
            answer.raise_for_status()
            return ResultPage.model_validate_json(answer.content).items
        except (httpx.HTTPError, ValidationError) as error:
            raise ResultsUnavailable(type(error).__name__) from error


_SPENDING_LIMITS = httpx.Limits(max_connections=4)


class StageOut(Exception):
    """A stage does not answer."""


class SpendingNotTold(Exception):
    """A stage answers, but not to this question."""


class StageSpending(Protocol):
    async def spent(self, stage: Stage, tenant_id: str, upgrade_id: str) -> list[Spent]:
        """What the stage has recorded for the ledger. Raises StageOut and SpendingNotTold."""


class StageHttp:
    """`StageSpending` over internal HTTP. Component."""

    def __init__(self, urls: Mapping[Stage, str], internal_token: str) -> None:
        self._urls = urls
        self._http = httpx.AsyncClient(
            timeout=_TIMEOUT, limits=_SPENDING_LIMITS, headers={INTERNAL_TOKEN_HEADER: internal_token}
        )

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        await self._http.aclose()

    async def spent(self, stage: Stage, tenant_id: str, upgrade_id: str) -> list[Spent]:
        url = f"{self._urls[stage].rstrip('/')}/internal/upgrades/{upgrade_id}/spent"
        try:
            answer = await retry_once_on_disconnect(lambda: self._http.get(url, params={"tenantId": tenant_id}))
        except httpx.HTTPError as error:
            raise StageOut(type(error).__name__) from None
        try:
            events = SpentEvents.model_validate_json(answer.raise_for_status().content).events
        except (httpx.HTTPStatusError, ValidationError) as error:
            raise SpendingNotTold(type(error).__name__) from None
        return [Spent(event_id=event.event_id, tokens=event.tokens, embeddings=event.embeddings) for event in events]


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
            answer = await retry_once_on_disconnect(lambda: self._http.delete(path, params=params))
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
