"""Client of the usage service's ledger, with which an outbox checks that its events were counted."""

from collections.abc import Sequence

import httpx
from pydantic import ValidationError

from shared.contracts.internal_http import EventIds
from shared.messaging.publish.outbox import LedgerUnavailable
from shared.service.internal_client import InternalClient


class LedgerClient:
    """Implements `Ledger` over the usage service's internal HTTP. Component."""

    def __init__(self, usage_url: str, internal_token: str) -> None:
        self._usage = InternalClient(usage_url, internal_token)

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        await self._usage.stop(grace_seconds)

    async def missing(self, event_ids: Sequence[str]) -> set[str]:
        """Returns those of `event_ids` that are not counted yet. Raises LedgerUnavailable."""
        try:
            answer = await self._usage.request(
                "POST", "/internal/events/missing", body=EventIds(event_ids=list(event_ids))
            )
            answer.raise_for_status()
            return set(EventIds.model_validate_json(answer.content).event_ids)
        except (httpx.HTTPError, ValidationError) as error:
            raise LedgerUnavailable(type(error).__name__) from error
