"""Builds the gateway from its settings. The only place here that makes adapters."""

import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from services.gateway.accept import AcceptUpgrade
from services.gateway.accepted_store import ACCEPTED, AcceptedStore
from services.gateway.admission import Admission, OpenAdmission
from services.gateway.api_keys import DemoKey
from services.gateway.caller import Identify
from services.gateway.document_routes import DocumentRoutes
from services.gateway.end_metrics import count_end
from services.gateway.event_stream import EventStreams
from services.gateway.idempotent_creations import CREATIONS, IdempotentCreations
from services.gateway.listing import UpgradeListing
from services.gateway.public_http import public_app
from services.gateway.publishing import BrokerConnection, TaskPublisher
from services.gateway.rag_http import RagDocuments
from services.gateway.record_marks import RecordMarks
from services.gateway.routes import UpgradeRoutes
from services.gateway.settings import GatewaySettings
from services.gateway.sweep_closing import CountedSweep, EndingSweep
from services.gateway.sweep_deadlines import DeadlineSweep
from services.gateway.sweep_publishing import PublishingSweep
from services.gateway.upgrade_route import UpgradeRoute
from services.gateway.upgrader_http import UpgradeResults
from services.gateway.view import UpgradeViews
from services.gateway.waiting import Waiters
from shared.contracts.contract import format_utc, now_utc
from shared.contracts.ids import new_id
from shared.messaging.cluster_watch import ClusterWatch
from shared.messaging.ledger_client import LedgerClient
from shared.messaging.producer import EventProducer
from shared.messaging.progress import ProgressLog, ReplyListener
from shared.observability.periodic import Periodic
from shared.observability.service import Component, run, run_service
from shared.observability.setup import Telemetry, setup
from shared.privacy.sealing import Vault
from shared.storage.opening import open_database
from shared.storage.redis_client import open_redis

SERVICE = "gateway"
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
        await run_service(
            telemetry=self.telemetry,
            http_app=self.http,
            host=self.settings.gateway_host,
            port=self.settings.gateway_port,
            components=self.components,
            grace_seconds=self.settings.shutdown_grace_seconds,
        )


def build_app(
    settings: GatewaySettings, *, identify: Identify | None = None, admission: Admission | None = None
) -> GatewayApp:
    """All adapters of the gateway, wired; nothing is started yet."""
    telemetry = setup(SERVICE, settings)
    token = settings.internal_token.get_secret_value()
    replica_id = new_id()
    vault = Vault.from_settings(settings)
    database = open_database(settings, SERVICE)
    store = AcceptedStore(database.collection(ACCEPTED))
    creations = IdempotentCreations(database.collection(CREATIONS))
    redis, stream_redis = open_redis(settings), open_redis(settings, max_connections=_MOST_EVENT_STREAMS)
    producer = EventProducer(settings, source=SERVICE)
    watch = ClusterWatch(settings)
    ledger = LedgerClient(settings.usage_url, token)
    results = UpgradeResults(settings.upgrader_url, token)
    documents = RagDocuments(settings.rag_url, token)
    progress = ProgressLog(redis)
    marks = RecordMarks(store, count_end)
    publisher = TaskPublisher(producer, marks, lambda: watch.cluster_id)
    waiters = Waiters(results, marks, lambda: telemetry.health.draining)
    views = UpgradeViews(vault)
    identify = identify or DemoKey(settings.demo_api_key.get_secret_value() if settings.demo_api_key else None)
    accept = AcceptUpgrade(
        records=store,
        admission=admission or OpenAdmission(),
        documents=documents,
        vault=vault,
        deadline_seconds=settings.upgrade_deadline_seconds,
        replica_id=replica_id,
    )
    upgrade = UpgradeRoute(
        identify=identify,
        accept=accept,
        publisher=publisher,
        progress=progress,
        waiters=waiters,
        results=results,
        views=views,
    )
    upgrades = UpgradeRoutes(
        identify=identify,
        store=store,
        results=results,
        views=views,
        listing=UpgradeListing(store, results, views, vault),
        streams=EventStreams(ProgressLog(stream_redis), results, waiters, views, lambda: telemetry.health.draining),
    )
    document_routes = DocumentRoutes(identify=identify, documents=documents, creations=creations, vault=vault)
    http = public_app(
        telemetry,
        upgrade=upgrade.post,
        routers=[upgrades.router(), document_routes.router()],
        asyncapi=json.loads(_ASYNCAPI.read_text()) if _ASYNCAPI.exists() else {},
        allowed_origins=settings.allowed_origins,
    )
    telemetry.health.add_check("store", database.ping)
    telemetry.health.add_check("redis", redis.ping)
    # Stopped from the end: first what finds work, then what does it, then what it is written to.
    components: tuple[Component, ...] = (
        database,
        results,
        ledger,
        documents,
        marks,
        BrokerConnection(producer),
        watch,
        publisher,
        progress,
        ReplyListener(redis, replica_id, waiters.on_result),
        *_background(settings, store, marks, publisher, waiters, results, ledger, creations, watch),
    )
    return GatewayApp(settings, telemetry, http, components)


def _background(
    settings: GatewaySettings,
    store: AcceptedStore,
    marks: RecordMarks,
    publisher: TaskPublisher,
    waiters: Waiters,
    results: UpgradeResults,
    ledger: LedgerClient,
    creations: IdempotentCreations,
    watch: ClusterWatch,
) -> list[Periodic]:
    """What the gateway does without being asked. Each job is short, bounded and safe to cut off or to do twice."""
    patience = max(0.0, settings.shutdown_grace_seconds / 2 - 2)
    keep = timedelta(days=settings.result_retention_days)

    async def forget_old() -> Any:
        await creations.forget_old()
        return await store.delete_closed(format_utc(now_utc() - keep))

    return [
        Periodic("record marks", marks.flush, _MARKS_EVERY_SECONDS),
        Periodic("missed replies", waiters.ask, _ASK_EVERY_SECONDS),
        Periodic("let go", lambda: waiters.let_go(patience), _LET_GO_EVERY_SECONDS),
        Periodic(
            "publishing sweep",
            PublishingSweep(store, publisher, marks, lambda: watch.cluster_id).run,
            _SWEEP_EVERY_SECONDS,
        ),
        Periodic("ending sweep", EndingSweep(store, results, waiters, marks).run, _SWEEP_EVERY_SECONDS),
        Periodic("deadline sweep", DeadlineSweep(store, results, waiters, publisher).run, _SWEEP_EVERY_SECONDS),
        Periodic("counted sweep", CountedSweep(store, ledger).run, _SWEEP_EVERY_SECONDS),
        Periodic("expiry", forget_old, _EXPIRY_EVERY_SECONDS),
    ]
