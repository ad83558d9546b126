"""Caches summaries in the service's document store, and serves the internal route that erases them."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Response

from services.summarizer.summarize import SummaryCache
from shared.contracts.contract import format_utc, now_utc
from shared.contracts.upgrade_tasks import Summary
from shared.messaging.errors import Transient
from shared.messaging.publish.outbox import FactOutbox
from shared.observability.logs import get_logger
from shared.observability.metrics import CACHE_REQUESTS
from shared.service.problems import unavailable_response
from shared.service.process import Periodic
from shared.service.recorded_stage import erase_output
from shared.storage.documents import Collection, CollectionSpec, Index, StorageUnavailable

SUMMARIES = CollectionSpec(
    name="summaries",
    indexes=(
        Index(fields=("createdAt",)),
        Index(fields=("tenantId",)),
        Index(fields=("upgradeId",), only_when_present="upgradeId"),
    ),
)
_EXPIRY_EVERY_SECONDS = 600.0

log = get_logger(__name__)


class StoredSummaryCache(SummaryCache):
    """Summaries by tenant and conversation. A periodic job deletes entries older than `keep`."""

    def __init__(self, summaries: Collection, keep: timedelta) -> None:
        self._summaries = summaries
        self._keep = keep
        self._expiry = Periodic("summary expiry", self.expire, _EXPIRY_EVERY_SECONDS)

    async def start(self) -> None:
        await self._expiry.start()

    async def stop(self, grace_seconds: float) -> None:
        await self._expiry.stop(grace_seconds)

    async def find(self, tenant_id: str, keys: Sequence[str]) -> dict[str, Summary]:
        ids = {_cache_id(tenant_id, key): key for key in keys}
        try:
            found = await self._summaries.get_many(list(ids))
        except StorageUnavailable as error:
            raise Transient(f"storage: {error}") from error
        summaries = {ids[entry["_id"]]: Summary.model_validate(entry["summary"]) for entry in found}
        outcome = "hit" if keys and keys[-1] in summaries else "partial" if summaries else "miss"
        CACHE_REQUESTS.labels(cache="summary", outcome=outcome).inc()
        return summaries

    async def put(self, tenant_id: str, key: str, summary: Summary, upgrade_id: str) -> None:
        entry = {
            "_id": _cache_id(tenant_id, key),
            "tenantId": tenant_id,
            "upgradeId": upgrade_id,
            "summary": summary.to_document(),
            "createdAt": format_utc(now_utc()),
        }
        try:
            await self._summaries.insert_if_absent(entry)
        except StorageUnavailable as error:
            # The model call is paid for, so the upgrade keeps its summary even if the cache cannot store it.
            log.warning("summary_not_cached", error=str(error))

    async def erase(self, tenant_id: str, upgrade_id: str) -> bool:
        """Deletes the summaries made for an upgrade. Returns whether there were any. Raises StorageUnavailable."""
        return await self._summaries.delete_many({"tenantId": tenant_id, "upgradeId": upgrade_id}) > 0

    async def expire(self) -> None:
        """Deletes entries older than `keep`. Raises StorageUnavailable."""
        oldest = format_utc(now_utc() - self._keep)
        await self._summaries.delete_many({"createdAt": {"$lt": oldest}})


def erasure_routes(cache: StoredSummaryCache, outputs: FactOutbox) -> APIRouter:
    """`DELETE /internal/upgrades/{upgradeId}?tenantId=`: erases an upgrade's summary from the cache and the outputs."""
    router = APIRouter(prefix="/internal/upgrades")

    @router.delete("/{upgrade_id}")
    async def erase(upgrade_id: str, tenant_id: Annotated[str, Query(alias="tenantId")]) -> Response:
        """204 after an erasure, 404 when there was nothing to erase, 503 while the store is down."""
        try:
            cached = await cache.erase(tenant_id, upgrade_id)
            recorded = await erase_output(outputs, tenant_id, upgrade_id)
        except StorageUnavailable:
            return unavailable_response()
        if not cached and not recorded:
            raise HTTPException(404)
        return Response(status_code=204)

    return router


def _cache_id(tenant_id: str, key: str) -> str:
    return f"{tenant_id}:{key}"
