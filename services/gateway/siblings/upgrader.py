"""Asks the upgrader how upgrades ended."""

from collections.abc import Awaitable, Callable, Sequence

import httpx
from pydantic import ValidationError

from shared.contracts.internal_http import INTERNAL_TOKEN_HEADER, ResultLookup, ResultPage
from shared.contracts.upgrade_results import UpgradeResult

LOOKUP_BATCH = 200
_TIMEOUT = httpx.Timeout(5.0, connect=1.0)
_LOOKUP = "/internal/upgrades/lookup"
_JSON = {"Content-Type": "application/json"}
_LIMITS = httpx.Limits(max_connections=16)


async def sent_twice_if_cut(send: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """Sends once more when the connection was cut, as one that was kept open is when the other side starts anew."""
    try:
        return await send()
    except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
        return await send()


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
            answer = await sent_twice_if_cut(lambda: self._http.post(_LOOKUP, content=question, headers=_JSON))
            answer.raise_for_status()
            return ResultPage.model_validate_json(answer.content).items
        except (httpx.HTTPError, ValidationError) as error:
            raise ResultsUnavailable(type(error).__name__) from error
