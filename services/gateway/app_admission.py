"""The part of the gateway's wiring that is about who may have how much."""

from dataclasses import dataclass

from fastapi import APIRouter
from redis.asyncio import Redis

from services.gateway.admission.demo_plan import DemoPlan
from services.gateway.admission.document_holds import DOCUMENT_HOLDS, DocumentHolds, DocumentWork
from services.gateway.admission.due_holds import DueHolds
from services.gateway.admission.holds import ModelBounds
from services.gateway.admission.quota_admissions import QuotaAdmissions
from services.gateway.admission.rebuild import Rebuild
from services.gateway.admission.redis_scripts import AdmissionConnection
from services.gateway.admission.settlement import Settlement
from services.gateway.admission.state import AdmissionState
from services.gateway.admission.unfinished_work import UnfinishedWork
from services.gateway.api.quota_routes import HoldRoutes, QuotaRoutes
from services.gateway.identity.api_keys import DEMO_TENANT_ID
from services.gateway.identity.failed_authentications import FailedAuthentications
from services.gateway.settings import GatewaySettings
from services.gateway.siblings.usage import UsageClient
from services.gateway.upgrades.accepted_store import AcceptedStore, AcceptedWork
from shared.observability.periodic import Periodic
from shared.observability.service import Component
from shared.privacy.sealing import Vault
from shared.storage.documents import Database

_SETTLE_EVERY_SECONDS = 1.0
_DUE_EVERY_SECONDS = 30.0
_FORGET_EVERY_SECONDS = 60.0


@dataclass(frozen=True)
class AdmissionParts:
    """What the rest of the gateway is given. `components` come after the database and before what accepts."""

    state: AdmissionState
    usage: UsageClient
    admissions: QuotaAdmissions
    failures: FailedAuthentications
    bounds: ModelBounds
    components: tuple[Component, ...]
    background: tuple[Periodic, ...]
    routers: tuple[APIRouter, ...]


def admission_parts(
    settings: GatewaySettings, *, database: Database, redis: Redis, store: AcceptedStore, vault: Vault
) -> AdmissionParts:
    """All of it, wired."""
    token = settings.internal_token.get_secret_value()
    connection = AdmissionConnection(settings.redis_url.get_secret_value())
    state, usage = AdmissionState(connection), UsageClient(settings.usage_url, token)
    held_documents = database.collection(DOCUMENT_HOLDS)
    upgrades = AcceptedWork(store)
    work = UnfinishedWork(upgrades, DocumentWork(held_documents))
    settlement = Settlement(state, work, usage)
    admissions = QuotaAdmissions(
        state,
        Rebuild(state, work, usage, upgrades),
        settlement,
        accepted_per_minute=settings.rate_limit_per_minute,
    )
    documents = DocumentHolds(held_documents, admissions)
    return AdmissionParts(
        state=state,
        usage=usage,
        admissions=admissions,
        failures=FailedAuthentications(state, vault, per_minute=settings.rate_limit_per_minute),
        bounds=ModelBounds(
            summary_tokens=settings.summarizer_max_tokens,
            rewrite_tokens=settings.upgrader_max_tokens,
            requests_per_call=settings.model_attempts + 1,
        ),
        components=(usage, connection, admissions, DemoPlan(usage, state, DEMO_TENANT_ID)),
        background=(
            Periodic("settlement", settlement.sweep, _SETTLE_EVERY_SECONDS),
            Periodic("due holds", DueHolds(redis, settlement).sweep, _DUE_EVERY_SECONDS),
            Periodic("old document holds", documents.forget_old, _FORGET_EVERY_SECONDS),
        ),
        routers=(QuotaRoutes(admissions).router(), HoldRoutes(documents).router()),
    )
