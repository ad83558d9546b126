"""The internal route that tells what a stage has spent on an upgrade, from the facts of its recorded output."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from shared.contracts.problems import UNAVAILABLE
from shared.contracts.quota_http import SpentEvent, SpentEvents
from shared.contracts.topics import USAGE_RECORDED
from shared.contracts.usage_events import UsageRecorded
from shared.messaging.outbox import FactOutbox
from shared.observability.service_http import problem_response
from shared.storage.documents import StorageUnavailable


def spent_route(outputs: FactOutbox) -> APIRouter:
    """`GET /internal/upgrades/{upgradeId}/spent?tenantId=`: SpentEvents, none for what it has no output of."""
    router = APIRouter(prefix="/internal/upgrades")

    @router.get("/{upgrade_id}/spent")
    async def spent(upgrade_id: str, tenant_id: Annotated[str, Query(alias="tenantId")]) -> Response:
        try:
            record = await outputs.records.get(upgrade_id)
        except StorageUnavailable:
            return problem_response(UNAVAILABLE, headers={"Retry-After": "2"})
        known = record is not None and record["tenantId"] == tenant_id
        facts = record["facts"] if record is not None and known else []
        events = [_spent(fact["data"]) for fact in facts if fact["topic"] == USAGE_RECORDED.name]
        return Response(SpentEvents(events=events).to_json(), media_type="application/json")

    return router


def _spent(data: dict[str, Any]) -> SpentEvent:
    used = UsageRecorded.model_validate(data)
    return SpentEvent(event_id=used.event_id, tokens=used.tokens_in + used.tokens_out, embeddings=used.embeddings)
