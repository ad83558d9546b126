"""Asks the usage service which events its ledger still lacks."""

from collections.abc import Sequence

import httpx
from pydantic import ValidationError

from shared.contracts.internal_http import INTERNAL_TOKEN_HEADER, EventIds
from shared.messaging.publish.outbox import LedgerUnavailable

_TIMEOUT_SECONDS = 5.0


class LedgerClient:
    """`Ledger` over the usage service's internal HTTP."""

    def __init__(self, usage_url: str, internal_token: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=usage_url, timeout=_TIMEOUT_SECONDS, headers={INTERNAL_TOKEN_HEADER: internal_token}
        )

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        await self._http.aclose()

    async def missing(self, event_ids: Sequence[str]) -> set[str]:
        """Those of `event_ids` that are not counted yet. Raises LedgerUnavailable."""
        question = EventIds(event_ids=list(event_ids))
        try:
            answer = await self._http.post(
                "/internal/events/missing",
                content=question.to_json(),
                headers={"Content-Type": "application/json"},
            )
            answer.raise_for_status()
            return set(EventIds.model_validate_json(answer.content).event_ids)
        except (httpx.HTTPError, ValidationError) as error:
            raise LedgerUnavailable(type(error).__name__) from error
