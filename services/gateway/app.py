"""Builds the gateway from its settings. The only module that constructs adapters."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from services.gateway.documents.rag_client import RagDocuments
from services.gateway.documents.routes import DocumentRoutes
from services.gateway.http.client_address import parse_networks
from services.gateway.http.edge import bad_request
from services.gateway.http.idempotency import CREATIONS, CreationClaims, IdempotentCreations
from services.gateway.identity.api_keys import API_KEYS, DEMO_TENANT_ID, ApiKeys, DemoKey
from services.gateway.identity.audit import AUDIT, Audit, AuditRoutes
from services.gateway.identity.identify import Authenticator
from services.gateway.identity.jwks import RemoteKeys
from services.gateway.identity.jwt_tokens import SharedSecret, TokenVerifier
from services.gateway.identity.key_routes import KeyRoutes
from services.gateway.identity.member_routes import MemberRoutes
from services.gateway.identity.workspace_routes import WorkspaceRoutes
from services.gateway.identity.workspaces import PEOPLE, WORKSPACES, DemoWorkspace, People, Workspaces
from services.gateway.prompts.routes import PromptRoutes
from services.gateway.prompts.upgrader_client import UpgraderPrompts
from services.gateway.quota.document_holds import DOCUMENT_HOLDS, DocumentHolds, DocumentWork
from services.gateway.quota.due_holds import DueHolds
from services.gateway.quota.failed_authentications import FailedAuthentications
from services.gateway.quota.held_work import UnfinishedWork
from services.gateway.quota.holds import AnswerLimits
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
from services.gateway.upgrades.upgrade_route import UPGRADE_NEEDS, UpgradeRoute
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
from shared.service.app import ServiceApp
from shared.service.process import Component, Periodic
from shared.service.telemetry import setup
from shared.storage.opening import open_database, open_redis, redis_now

SERVICE = "gateway"
_MOST_EVENT_STREAMS = 256
_ASYNCAPI = Path(__file__).parents[2] / "docs" / "asyncapi.json"

_LET_GO_EVERY_SECONDS = 0.25
_MARKS_EVERY_SECONDS = 0.5
_ASK_EVERY_SECONDS = 1.0
_SETTLE_EVERY_SECONDS = 1.0
_SWEEP_EVERY_SECONDS = 2.0
_KEY_USE_EVERY_SECONDS = 5.0
_PURGE_EVERY_SECONDS = 5.0
_DUE_EVERY_SECONDS = 30.0
_FORGET_EVERY_SECONDS = 60.0
_RETENTION_EVERY_SECONDS = 3600.0


def build_app(settings: GatewaySettings) -> ServiceApp:
    """All adapters of the gateway, wired; nothing is started yet."""
    telemetry = setup(SERVICE, settings)
    token = settings.internal_token.get_secret_value()
    issuer = settings.jwt_issuer or ""
    keep = timedelta(days=settings.result_retention_days)
    replica_id = new_id()

    # Stores and clients that several rooms share.
    database = open_database(settings, SERVICE)
    redis = open_redis(settings)
    vault = Vault.from_settings(settings)
    store = AcceptedStore(database.collection(ACCEPTED))
    claims = CreationClaims(database.collection(CREATIONS))
    creations = IdempotentCreations(claims, vault)
    documents = RagDocuments(settings.rag_url, token)
    telemetry.health.add_check("store", database.ping)
    telemetry.health.add_check("redis", redis.ping)

    # Quota: what a tenant may still use.
    connection = AdmissionConnection(settings.redis_url.get_secret_value())
    state = AdmissionState(connection)
    usage = UsageClient(settings.usage_url, token)
    upgrade_work = AcceptedWork(store)
    held_documents = database.collection(DOCUMENT_HOLDS)
    work = UnfinishedWork(upgrade_work, DocumentWork(held_documents))
    settlement = Settlement(state, work, usage)
    rebuild = Rebuild(state, work, usage, upgrade_work)
    admissions = QuotaAdmissions(state, rebuild, settlement, accepted_per_minute=settings.rate_limit_per_minute)
    document_holds = DocumentHolds(held_documents, admissions)
    failures = FailedAuthentications(state, vault, per_minute=settings.rate_limit_per_minute)

    # Identity: who calls, and what they may do.
    audit = Audit(database.collection(AUDIT))
    keys = ApiKeys(database.collection(API_KEYS))
    workspaces = Workspaces(database.collection(WORKSPACES), People(database.collection(PEOPLE)))
    remote_keys = RemoteKeys(settings.jwt_jwks_url) if settings.jwt_jwks_url else None
    authenticator = Authenticator(
        demo=DemoKey(settings.demo_api_key.get_secret_value() if settings.demo_api_key else None),
        keys=keys,
        tokens=_token_verifier(settings, remote_keys),
        workspaces=workspaces,
        audit=audit,
        on_failed_auth=failures,
    )

    # Upgrades: accepted, published, waited for, and answered.
    producer = EventProducer(settings, source=SERVICE)
    watch = ClusterWatch(settings)
    results = UpgradeResults(settings.upgrader_url, token)
    stages = StageHttp({Stage.SUMMARIZER: settings.summarizer_url, Stage.RAG: settings.rag_url}, token)
    progress = ProgressLog(redis)
    marks = RecordMarks(store, count_end, admissions.settle)
    publisher = TaskPublisher(producer, marks, lambda: watch.cluster_id)
    waiters = Waiters(results, marks, lambda: telemetry.health.draining)
    views = UpgradeViews(vault)
    # Reads of event streams block, so they have connections of their own and leave the others free.
    stream_log = ProgressLog(open_redis(settings, max_connections=_MOST_EVENT_STREAMS))
    streams = EventStreams(stream_log, results, waiters, views, lambda: telemetry.health.draining)
    accept = AcceptUpgrade(
        records=store,
        admissions=admissions,
        documents=documents,
        vault=vault,
        limits=AnswerLimits(summary_tokens=settings.summarizer_max_tokens, rewrite_tokens=settings.upgrader_max_tokens),
        deadline_seconds=settings.upgrade_deadline_seconds,
        replica_id=replica_id,
    )

    # Erasure: of upgrades, and of all content of a deleted workspace.
    upgrader_content, *stage_contents = (
        ServiceContent(url, token) for url in (settings.upgrader_url, settings.summarizer_url, settings.rag_url)
    )
    erasure = Erasure(store, ends=upgrader_content, others=[*stage_contents, EventStreamContent(redis)])
    purge = Purge(workspaces=workspaces, keys=keys, erasure=erasure, documents=documents, claims=claims)

    # HTTP.
    prompts = UpgraderPrompts(settings.upgrader_url, token)
    prompt_routes = PromptRoutes(prompts=prompts, prepare=accept.prepare, audit=audit, creations=creations)
    upgrade = UpgradeRoute(
        accept=accept,
        publisher=publisher,
        progress=progress,
        waiters=waiters,
        results=results,
        views=views,
        require_prompt=prompt_routes.require,
    )
    forget = authenticator.forget
    routers = [
        UpgradeRoutes(
            store=store,
            results=results,
            views=views,
            listing=UpgradeListing(store, results, views, vault),
            streams=streams,
        ).router(),
        prompt_routes.router(),
        DocumentRoutes(documents=documents, creations=creations, vault=vault, audit=audit).router(),
        WorkspaceRoutes(workspaces=workspaces, audit=audit, creations=creations, issuer=issuer, forget=forget).router(),
        MemberRoutes(
            workspaces=workspaces, keys=keys, audit=audit, creations=creations, issuer=issuer, forget=forget
        ).router(),
        KeyRoutes(keys=keys, audit=audit, creations=creations, forget=forget).router(),
        AuditRoutes(audit).router(),
        ErasureRoutes(store=store, erasure=erasure, audit=audit, vault=vault).router(),
        QuotaRoutes(admissions).router(),
        HoldRoutes(document_holds).router(),
        StatsRoutes(usage).router(),
        AdminRoutes(
            admin_key=settings.admin_api_key.get_secret_value() if settings.admin_api_key else None,
            tenants=workspaces,
            plans=usage,
            limits=state,
            audit=audit,
            on_refused=failures,
        ).router(),
    ]
    http = public_app(
        telemetry,
        identify=authenticator,
        trusted_proxies=parse_networks(settings.trusted_proxies),
        upgrade=upgrade.post,
        upgrade_role=UPGRADE_NEEDS.role,
        routers=routers,
        asyncapi=_asyncapi(),
        event_examples={topic.name: json.loads(example_file(topic).read_text()) for topic in TOPICS},
        allowed_origins=settings.allowed_origins,
        internal_token=token,
    )

    # Background work. Each job is short, bounded, and safe to cut off or to do twice.
    publishing = PublishingSweep(store, publisher, marks, lambda: watch.cluster_id)
    cut_short = CutShortSweep(store, stages, lambda: redis_now(redis))
    patience = max(0.0, settings.shutdown_grace_seconds / 2 - 2)

    async def delete_expired() -> None:
        await claims.forget_old()
        await store.delete_closed(format_utc(now_utc() - keep))

    background = [
        Periodic("record marks", marks.flush, _MARKS_EVERY_SECONDS),
        Periodic("missed replies", waiters.ask, _ASK_EVERY_SECONDS),
        Periodic("let go", lambda: waiters.let_go(patience), _LET_GO_EVERY_SECONDS),
        Periodic("publishing sweep", publishing.run, _SWEEP_EVERY_SECONDS),
        Periodic("ending sweep", EndingSweep(store, results, waiters, marks).run, _SWEEP_EVERY_SECONDS),
        Periodic("deadline sweep", DeadlineSweep(store, results, waiters, publisher).run, _SWEEP_EVERY_SECONDS),
        Periodic("cut short sweep", cut_short.run, _SWEEP_EVERY_SECONDS),
        Periodic("expiry", delete_expired, _RETENTION_EVERY_SECONDS),
        Periodic("key use", keys.flush_uses, _KEY_USE_EVERY_SECONDS),
        Periodic("erasure sweep", erasure.sweep, _SWEEP_EVERY_SECONDS),
        Periodic("retention", lambda: erasure.of_old(now_utc() - keep), _RETENTION_EVERY_SECONDS),
        Periodic("workspace purge", purge.run, _PURGE_EVERY_SECONDS),
        Periodic("settlement", settlement.sweep, _SETTLE_EVERY_SECONDS),
        Periodic("due holds", DueHolds(redis, settlement).sweep, _DUE_EVERY_SECONDS),
        Periodic("old document holds", document_holds.forget_old, _FORGET_EVERY_SECONDS),
    ]

    # Stopped in reverse order: first the background work, then the clients it uses, last the store.
    components: tuple[Component, ...] = (
        database,
        DemoWorkspace(workspaces, DEMO_TENANT_ID),
        upgrader_content,
        *stage_contents,
        *((remote_keys,) if remote_keys else ()),
        usage,
        connection,
        admissions,
        DemoPlan(usage, state, DEMO_TENANT_ID),
        results,
        stages,
        documents,
        prompts,
        marks,
        BrokerConnection(producer),
        watch,
        publisher,
        progress,
        ReplyListener(redis, replica_id, waiters.on_result),
        *background,
    )
    return ServiceApp(
        telemetry=telemetry,
        http=http,
        host=settings.gateway_host,
        port=settings.gateway_port,
        grace_seconds=settings.shutdown_grace_seconds,
        components=components,
        bad_request=bad_request,
    )


def _token_verifier(settings: GatewaySettings, remote_keys: RemoteKeys | None) -> TokenVerifier | None:
    """None without settings for tokens."""
    if not settings.jwt_issuer or not settings.jwt_audience:
        return None
    if settings.jwt_secret is not None:
        keys: SharedSecret | RemoteKeys = SharedSecret(settings.jwt_secret.get_secret_value().encode())
    elif remote_keys is not None:
        keys = remote_keys
    else:
        return None
    return TokenVerifier(keys, issuer=settings.jwt_issuer, audience=settings.jwt_audience)


def _asyncapi() -> dict[str, Any]:
    if _ASYNCAPI.exists():
        document: dict[str, Any] = json.loads(_ASYNCAPI.read_text())
        return document
    # Installed without the docs folder, the document is generated, which imports FastStream and takes longer.
    from shared.messaging.operate.asyncapi import asyncapi_document

    return asyncapi_document()
