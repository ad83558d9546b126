"""Holds on embeddings, over the gateway's internal HTTP."""

from collections.abc import Sequence

import httpx
import orjson

from services.rag.embedding_holds import HoldsUnavailable, NoRoom
from shared.contracts.contract import Contract
from shared.contracts.internal_http import INTERNAL_TOKEN_HEADER
from shared.contracts.plans import Meter
from shared.contracts.problems import QUOTA_EXCEEDED
from shared.contracts.quota_http import EmbeddingsHold, EmbeddingsHoldEnd, SpentEvent

# The gateway may have to rebuild a tenant's state first.
_TIMEOUT = httpx.Timeout(12.0, connect=1.0)
_PATH = "/internal/holds/embeddings"
_JSON = {"Content-Type": "application/json"}


class GatewayHolds:
    """`EmbeddingHolds` of `embedding_holds`. Component."""

    def __init__(self, gateway_url: str, internal_token: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=gateway_url, timeout=_TIMEOUT, headers={INTERNAL_TOKEN_HEADER: internal_token}
        )

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        await self._http.aclose()

    async def take(self, hold: EmbeddingsHold) -> None:
        answer = await self._post(_PATH, hold)
        if answer.status_code == QUOTA_EXCEEDED.status:
            raise _no_room(answer)
        if not answer.is_success:
            raise HoldsUnavailable(f"the gateway answered {answer.status_code}")

    async def end(self, hold_id: str, spent: Sequence[SpentEvent]) -> None:
        answer = await self._post(f"{_PATH}/{hold_id}/end", EmbeddingsHoldEnd(spent=list(spent)))
        if not answer.is_success:
            raise HoldsUnavailable(f"the gateway answered {answer.status_code}")

    async def _post(self, path: str, body: Contract) -> httpx.Response:
        try:
            return await self._http.post(path, content=body.to_json(), headers=_JSON)
        except httpx.HTTPError as error:
            raise HoldsUnavailable(type(error).__name__) from error


def _no_room(answer: httpx.Response) -> NoRoom:
    try:
        problem = orjson.loads(answer.content)
        return NoRoom(Meter(problem["meter"]), problem, answer.headers.get("Retry-After"))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return NoRoom(Meter.EMBEDDINGS)
