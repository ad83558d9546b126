"""Builds the gateway from its settings. The only module that constructs adapters."""

import gc
import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from redis.asyncio import Redis
from starlette.types import ASGIApp

from services.gateway.documents.rag_client import RagDocuments
from services.gateway.documents.routes import DocumentRoutes
from services.gateway.http.client_address import parse_networks
from services.gateway.http.edge import bad_request
from services.gateway.http.idempotency import CREATIONS, IdempotentCreations, OnceOnly
from services.gateway.identity.api_keys import API_KEYS, DEMO_TENANT_ID, ApiKeys, DemoKey
from services.gateway.identity.audit import AUDIT, AuditTrail
from services.gateway.identity.audit_routes import AuditRoutes
from services.gateway.identity.caller import Identify
from services.gateway.identity.identify import Identity, Refused, nobody_counts
from services.gateway.identity.jwks import RemoteKeys
from services.gateway.identity.jwt_tokens import SharedSecret, TokenVerifier
from services.gateway.identity.key_routes import KeyRoutes
from services.gateway.identity.member_routes import MemberRoutes
from services.gateway.identity.workspace_routes import WorkspaceRoutes
from services.gateway.identity.workspaces import PEOPLE, WORKSPACES, People, Workspaces
from services.gateway.quota.admission import Admissions
from services.gateway.quota.document_holds import DOCUMENT_HOLDS, DocumentHolds, DocumentWork
from services.gateway.quota.due_holds import DueHolds
from services.gateway.quota.failed_authentications import FailedAuthentications
from services.gateway.quota.held_work import UnfinishedWork
from services.gateway.quota.holds import ModelBounds
from services.gateway.quota.plan_routes import AdminRoutes, DemoPlan
from services.gateway.quota.quota_admissions import QuotaAdmissions
from services.gateway.quota.rebuild import Rebuild
from services.gateway.quota.redis_scripts import AdmissionConnection
from services.gateway.quota.routes import HoldRoutes, QuotaRoutes, StatsRoutes
from services.gateway.quota.settlement import Settlement
from services.gateway.quota.state import AdmissionState
from services.gateway.quota.usage_client import UsageClient
from services.gateway.settings import GatewaySettings
from services.gateway.upgrades.accept import AcceptUpgrade
from services.gateway.upgrades.accepted_store import ACCEPTED, AcceptedStore, AcceptedWork
from services.gateway.upgrades.erasure import Erasure, Purge
from services.gateway.upgrades.event_stream import EventStreams
from services.gateway.upgrades.publishing import BrokerConnection, PublishingSweep, TaskPublisher
from services.gateway.upgrades.record_marks import RecordMarks, count_end
from services.gateway.upgrades.routes import ErasureRoutes, UpgradeRoutes
from services.gateway.upgrades.stage_clients import EventStreamContent, ServiceContent, StageHttp, UpgradeResults
from services.gateway.upgrades.sweeps import CutShortSweep, DeadlineSweep, EndingSweep
from services.gateway.upgrades.upgrade_route import UpgradeRoute
from services.gateway.upgrades.views import UpgradeListing, UpgradeViews
from services.gateway.upgrades.waiting import Waiters
from services.gateway.web.public_app import public_app
from shared.contracts.contract import format_utc, new_id, now_utc
from shared.contracts.schema_files import example_file
from shared.contracts.topics import TOPICS
from shared.contracts.upgrade_tasks import Stage
from shared.messaging.cluster_watch import ClusterWatch
from shared.messaging.publish.producer import EventProducer
from shared.messaging.publish.progress import ProgressLog, ReplyListener
from shared.privacy.sealing import Vault
from shared.service.process import Component, Periodic, run, run_service
from shared.service.telemetry import Telemetry, setup
from shared.storage.documents import Database
from shared.storage.opening import open_database, open_redis, redis_now

SERVICE = "gateway"
_COLLECTIONS_AFTER = (20_000, 20, 20)
_MARKS_EVERY_SECONDS = 0.5
_ASK_EVERY_SECONDS = 1.0
_LET_GO_EVERY_SECONDS = 0.25
_SWEEP_EVERY_SECONDS = 2.0
_EXPIRY_EVERY_SECONDS = 3600.0
_MOST_EVENT_STREAMS = 256
_ASYNCAPI = Path(__file__).parents[2] / "docs" / "asyncapi.json"


@dataclass(frozen=True)
class GatewayApp:
    """The parts of a gateway process, ready to run."""

    settings: GatewaySettings
    telemetry: Telemetry
    http: ASGIApp
    components: tuple[Component, ...]

    def run(self) -> None:
        """Serves until SIGTERM, then drains."""
        run(self.serve())

    async def serve(self) -> None:
        """As `run`, in the running event loop."""
        # What exists now stays for good: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        # What a request makes is gone with it and holds no cycles: looked for less often, it costs a tenth less CPU.
        gc.set_threshold(*_COLLECTIONS_AFTER)
        await run_service(
            telemetry=self.telemetry,
            http_app=self.http,
            host=self.settings.gateway_host,
            port=self.settings.gateway_port,
            components=self.components,
            grace_seconds=self.settings.shutdown_grace_seconds,
            bad_request=bad_request,
        )


@dataclass(frozen=True)
class IdentityParts:
    """What the rest of the gateway is given. `components` come right after the database."""

    identify: Identity
    audit: AuditTrail
    workspaces: Workspaces
    components: tuple[Component, ...]
    background: tuple[Periodic, ...]
    routers: tuple[APIRouter, ...]


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


@dataclass(frozen=True)
class _Parts:
    """The adapters and what is made of them, for the three that share them: HTTP, background work, life cycle."""

    vault: Vault
    database: Database
    redis: Redis
    stream_redis: Redis
    store: AcceptedStore
    creations: IdempotentCreations
    producer: EventProducer
    watch: ClusterWatch
    results: UpgradeResults
    stages: StageHttp
    documents: RagDocuments
    progress: ProgressLog
    marks: RecordMarks
    publisher: TaskPublisher
    waiters: Waiters
    identity: IdentityParts
    admission: AdmissionParts


def build_app(
    settings: GatewaySettings, *, identify: Identify | None = None, admissions: Admissions | None = None
) -> GatewayApp:
    """All adapters of the gateway, wired; nothing is started yet."""
    telemetry = setup(SERVICE, settings)
    replica_id = new_id()
    parts = _parts(settings, telemetry)
    identify = identify or parts.identity.identify
    accept = AcceptUpgrade(
        records=parts.store,
        admissions=admissions or parts.admission.admissions,
        documents=parts.documents,
        vault=parts.vault,
        bounds=parts.admission.bounds,
        deadline_seconds=settings.upgrade_deadline_seconds,
        replica_id=replica_id,
    )
    telemetry.health.add_check("store", parts.database.ping)
    telemetry.health.add_check("redis", parts.redis.ping)
    # Stopped from the end: first what finds work, then what does it, then what it is written to.
    components: tuple[Component, ...] = (
        parts.database,
        *parts.identity.components,
        *parts.admission.components,
        parts.results,
        parts.stages,
        parts.documents,
        parts.marks,
        BrokerConnection(parts.producer),
        parts.watch,
        parts.publisher,
        parts.progress,
        ReplyListener(parts.redis, replica_id, parts.waiters.on_result),
        *_background(settings, parts),
    )
    return GatewayApp(settings, telemetry, _http(settings, telemetry, parts, identify, accept), components)


def _parts(settings: GatewaySettings, telemetry: Telemetry) -> _Parts:
    token = settings.internal_token.get_secret_value()
    database = open_database(settings, SERVICE)
    store = AcceptedStore(database.collection(ACCEPTED))
    redis = open_redis(settings)
    producer = EventProducer(settings, source=SERVICE)
    watch = ClusterWatch(settings)
    results = UpgradeResults(settings.upgrader_url, token)
    vault = Vault.from_settings(settings)
    admission = admission_parts(settings, database=database, redis=redis, store=store, vault=vault)
    marks = RecordMarks(store, count_end, admission.admissions.settle)
    creations = IdempotentCreations(database.collection(CREATIONS))
    documents = RagDocuments(settings.rag_url, token)
    return _Parts(
        vault=vault,
        database=database,
        redis=redis,
        stream_redis=open_redis(settings, max_connections=_MOST_EVENT_STREAMS),
        store=store,
        creations=creations,
        producer=producer,
        watch=watch,
        results=results,
        stages=StageHttp({Stage.SUMMARIZER: settings.summarizer_url, Stage.RAG: settings.rag_url}, token),
        documents=documents,
        progress=ProgressLog(redis),
        marks=marks,
        publisher=TaskPublisher(producer, marks, lambda: watch.cluster_id),
        waiters=Waiters(results, marks, lambda: telemetry.health.draining),
        identity=identity_parts(
            settings,
            database=database,
            redis=redis,
            vault=vault,
            store=store,
            creations=creations,
            documents=documents,
            on_refused=admission.failures,
        ),
        admission=admission,
    )


def _http(
    settings: GatewaySettings, telemetry: Telemetry, parts: _Parts, identify: Identify, accept: AcceptUpgrade
) -> ASGIApp:
    views = UpgradeViews(parts.vault)
    upgrade = UpgradeRoute(
        accept=accept,
        publisher=parts.publisher,
        progress=parts.progress,
        waiters=parts.waiters,
        results=parts.results,
        views=views,
    )
    # Streams block on their own connections, so that many of them leave some for everything else.
    streams = EventStreams(
        ProgressLog(parts.stream_redis), parts.results, parts.waiters, views, lambda: telemetry.health.draining
    )
    upgrades = UpgradeRoutes(
        store=parts.store,
        results=parts.results,
        views=views,
        listing=UpgradeListing(parts.store, parts.results, views, parts.vault),
        streams=streams,
    )
    documents = DocumentRoutes(
        documents=parts.documents,
        once=OnceOnly(parts.creations, parts.vault),
        vault=parts.vault,
        audit=parts.identity.audit,
    )
    return public_app(
        telemetry,
        identify=identify,
        trusted_proxies=parse_networks(settings.trusted_proxies),
        upgrade=upgrade.post,
        routers=[
            upgrades.router(),
            documents.router(),
            *parts.identity.routers,
            *parts.admission.routers,
            *plan_routers(settings, parts.identity, parts.admission),
        ],
        asyncapi=_asyncapi(),
        event_examples={topic.name: json.loads(example_file(topic).read_text()) for topic in TOPICS},
        allowed_origins=settings.allowed_origins,
        internal_token=settings.internal_token.get_secret_value(),
    )


def _asyncapi() -> dict[str, Any]:
    if _ASYNCAPI.exists():
        document: dict[str, Any] = json.loads(_ASYNCAPI.read_text())
        return document
    # An installation without the docs folder makes it anew, at the price of importing what makes it.
    from shared.messaging.operate.asyncapi import asyncapi_document

    return asyncapi_document()


def _background(settings: GatewaySettings, parts: _Parts) -> list[Periodic]:
    """What the gateway does without being asked. Each job is short, bounded and safe to cut off or to do twice."""
    store, results, waiters, marks, publisher = parts.store, parts.results, parts.waiters, parts.marks, parts.publisher
    patience = max(0.0, settings.shutdown_grace_seconds / 2 - 2)
    keep = timedelta(days=settings.result_retention_days)
    publishing = PublishingSweep(store, publisher, marks, lambda: parts.watch.cluster_id)
    cut_short = CutShortSweep(store, parts.stages, lambda: redis_now(parts.redis))

    async def forget_old() -> None:
        await parts.creations.forget_old()
        await store.delete_closed(format_utc(now_utc() - keep))

    return [
        Periodic("record marks", marks.flush, _MARKS_EVERY_SECONDS),
        Periodic("missed replies", waiters.ask, _ASK_EVERY_SECONDS),
        Periodic("let go", lambda: waiters.let_go(patience), _LET_GO_EVERY_SECONDS),
        Periodic("publishing sweep", publishing.run, _SWEEP_EVERY_SECONDS),
        Periodic("ending sweep", EndingSweep(store, results, waiters, marks).run, _SWEEP_EVERY_SECONDS),
        Periodic("deadline sweep", DeadlineSweep(store, results, waiters, publisher).run, _SWEEP_EVERY_SECONDS),
        Periodic("cut short sweep", cut_short.run, _SWEEP_EVERY_SECONDS),
        Periodic("expiry", forget_old, _EXPIRY_EVERY_SECONDS),
        *parts.identity.background,
        *parts.admission.background,
    ]


def plan_routers(settings: GatewaySettings, identity: IdentityParts, admission: AdmissionParts) -> list[APIRouter]:
    """The routes, on what the other parts of the gateway have made."""
    admin_key = settings.admin_api_key.get_secret_value() if settings.admin_api_key else None
    admin = AdminRoutes(
        admin_key=admin_key,
        tenants=identity.workspaces,
        plans=admission.usage,
        limits=admission.state,
        audit=identity.audit,
        on_refused=admission.failures,
    )
    return [StatsRoutes(admission.usage).router(), admin.router()]


_SETTLE_EVERY_SECONDS = 1.0
_DUE_EVERY_SECONDS = 30.0
_FORGET_EVERY_SECONDS = 60.0


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


_KEY_USE_EVERY_SECONDS = 5.0
_ERASURE_EVERY_SECONDS = 2.0
_PURGE_EVERY_SECONDS = 5.0
_RETENTION_EVERY_SECONDS = 3600.0


class DemoWorkspace:
    """Component: the workspace of the demo key is there before the first request."""

    def __init__(self, workspaces: Workspaces) -> None:
        self._workspaces = workspaces

    async def start(self) -> None:
        await self._workspaces.ensure_demo(DEMO_TENANT_ID)

    async def stop(self, grace_seconds: float) -> None: ...


def identity_parts(
    settings: GatewaySettings,
    *,
    database: Database,
    redis: Redis,
    vault: Vault,
    store: AcceptedStore,
    creations: IdempotentCreations,
    documents: RagDocuments,
    on_refused: Refused = nobody_counts,
) -> IdentityParts:
    """All of it, wired. `on_refused` is told of each failed authentication."""
    audit = AuditTrail(database.collection(AUDIT))
    keys = ApiKeys(database.collection(API_KEYS))
    workspaces = Workspaces(database.collection(WORKSPACES), People(database.collection(PEOPLE)))
    remote_keys = RemoteKeys(settings.jwt_jwks_url) if settings.jwt_jwks_url else None
    demo = DemoKey(settings.demo_api_key.get_secret_value() if settings.demo_api_key else None)
    identify = Identity(
        demo=demo,
        keys=keys,
        tokens=_verifier(settings, remote_keys),
        workspaces=workspaces,
        audit=audit,
        on_refused=on_refused,
    )
    token = settings.internal_token.get_secret_value()
    upgrader, *stages = (
        ServiceContent(url, token) for url in (settings.upgrader_url, settings.summarizer_url, settings.rag_url)
    )
    erasure = Erasure(store, ends=upgrader, others=[*stages, EventStreamContent(redis)])
    purge = Purge(workspaces=workspaces, keys=keys, erasure=erasure, documents=documents, claims=creations)
    once = OnceOnly(creations, vault)
    keep = timedelta(days=settings.result_retention_days)
    issuer, forget = settings.jwt_issuer or "", identify.forget
    return IdentityParts(
        identify=identify,
        audit=audit,
        workspaces=workspaces,
        components=(
            DemoWorkspace(workspaces),
            upgrader,
            *stages,
            *((remote_keys,) if remote_keys else ()),
        ),
        background=(
            Periodic("key use", keys.flush, _KEY_USE_EVERY_SECONDS),
            Periodic("erasure sweep", erasure.sweep, _ERASURE_EVERY_SECONDS),
            Periodic("retention", lambda: erasure.of_old(now_utc() - keep), _RETENTION_EVERY_SECONDS),
            Periodic("workspace purge", purge.run, _PURGE_EVERY_SECONDS),
        ),
        routers=(
            WorkspaceRoutes(workspaces=workspaces, audit=audit, once=once, issuer=issuer, forget=forget).router(),
            MemberRoutes(
                workspaces=workspaces, keys=keys, audit=audit, once=once, issuer=issuer, forget=forget
            ).router(),
            KeyRoutes(keys=keys, audit=audit, once=once, forget=forget).router(),
            AuditRoutes(audit).router(),
            ErasureRoutes(store=store, erasure=erasure, audit=audit, vault=vault).router(),
        ),
    )


def _verifier(settings: GatewaySettings, remote_keys: RemoteKeys | None) -> TokenVerifier | None:
    if not settings.jwt_issuer or not settings.jwt_audience:
        return None
    if settings.jwt_secret is not None:
        keys: SharedSecret | RemoteKeys = SharedSecret(settings.jwt_secret.get_secret_value().encode())
    elif remote_keys is not None:
        keys = remote_keys
    else:
        return None
    return TokenVerifier(keys, issuer=settings.jwt_issuer, audience=settings.jwt_audience)
