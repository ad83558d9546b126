"""Builds the gateway from its settings. The only place here that makes adapters."""

import gc
import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from starlette.types import ASGIApp

from services.gateway.admission.admissions import Admissions
from services.gateway.api.document_routes import DocumentRoutes
from services.gateway.api.edge import bad_request
from services.gateway.api.idempotent_creations import CREATIONS, IdempotentCreations
from services.gateway.api.once_only import OnceOnly
from services.gateway.api.public_http import public_app
from services.gateway.api.upgrade_reads import UpgradeRoutes
from services.gateway.api.upgrade_route import UpgradeRoute
from services.gateway.app_admission import AdmissionParts, admission_parts
from services.gateway.app_identity import IdentityParts, identity_parts
from services.gateway.app_plans import plan_routers
from services.gateway.client_address import parse_networks
from services.gateway.identity.caller import Identify
from services.gateway.settings import GatewaySettings
from services.gateway.siblings.rag import RagDocuments
from services.gateway.siblings.stages import StageHttp
from services.gateway.siblings.upgrader import UpgradeResults
from services.gateway.upgrades.accept import AcceptUpgrade
from services.gateway.upgrades.accepted_store import ACCEPTED, AcceptedStore
from services.gateway.upgrades.end_metrics import count_end
from services.gateway.upgrades.event_stream import EventStreams
from services.gateway.upgrades.listing import UpgradeListing
from services.gateway.upgrades.publishing import BrokerConnection, TaskPublisher
from services.gateway.upgrades.record_marks import RecordMarks
from services.gateway.upgrades.sweep_closing import EndingSweep
from services.gateway.upgrades.sweep_cut_short import CutShortSweep
from services.gateway.upgrades.sweep_deadlines import DeadlineSweep
from services.gateway.upgrades.sweep_publishing import PublishingSweep
from services.gateway.upgrades.view import UpgradeViews
from services.gateway.upgrades.waiting import Waiters
from shared.contracts.contract import format_utc, now_utc
from shared.contracts.ids import new_id
from shared.contracts.schema_files import example_file
from shared.contracts.topics import TOPICS
from shared.contracts.upgrade_tasks import Stage
from shared.messaging.cluster_watch import ClusterWatch
from shared.messaging.producer import EventProducer
from shared.messaging.progress import ProgressLog, ReplyListener
from shared.observability.periodic import Periodic
from shared.observability.service import Component, run, run_service
from shared.observability.setup import Telemetry, setup
from shared.privacy.sealing import Vault
from shared.storage.documents import Database
from shared.storage.opening import open_database
from shared.storage.redis_client import open_redis, redis_now

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
    from shared.messaging.asyncapi import asyncapi_document

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
