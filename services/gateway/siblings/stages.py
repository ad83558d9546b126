"""Asks the stages before the upgrader what they have spent on an upgrade."""

from collections.abc import Mapping

import httpx
from pydantic import ValidationError

from services.gateway.admission.held_work import Spent
from services.gateway.siblings.upgrader import sent_twice_if_cut
from services.gateway.upgrades.sweep_cut_short import SpendingNotTold, StageOut
from shared.contracts.internal_http import INTERNAL_TOKEN_HEADER
from shared.contracts.quota_http import SpentEvents
from shared.contracts.upgrade_tasks import Stage

_TIMEOUT = httpx.Timeout(5.0, connect=1.0)
_LIMITS = httpx.Limits(max_connections=4)


class StageHttp:
    """`StageSpending` over internal HTTP. Component."""

    def __init__(self, urls: Mapping[Stage, str], internal_token: str) -> None:
        self._urls = urls
        self._http = httpx.AsyncClient(
            timeout=_TIMEOUT, limits=_LIMITS, headers={INTERNAL_TOKEN_HEADER: internal_token}
        )

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        await self._http.aclose()

    async def spent(self, stage: Stage, tenant_id: str, upgrade_id: str) -> list[Spent]:
        url = f"{self._urls[stage].rstrip('/')}/internal/upgrades/{upgrade_id}/spent"
        try:
            answer = await sent_twice_if_cut(lambda: self._http.get(url, params={"tenantId": tenant_id}))
        except httpx.HTTPError as error:
            raise StageOut(type(error).__name__) from None
        try:
            events = SpentEvents.model_validate_json(answer.raise_for_status().content).events
        except (httpx.HTTPStatusError, ValidationError) as error:
            raise SpendingNotTold(type(error).__name__) from None
        return [Spent(event_id=event.event_id, tokens=event.tokens, embeddings=event.embeddings) for event in events]
