"""Builds the usage service from its settings. The only place here that makes adapters."""

import gc
from dataclasses import dataclass
from datetime import timedelta

from fastapi import FastAPI
from redis.asyncio import Redis

from services.usage.admission_redis import RedisAdmissionStates
from services.usage.announcements import OutboxAnnouncements
from services.usage.batch_window import LEASE_SECONDS
from services.usage.count_batch import CountBatch
from services.usage.full_reconciliation import Reconciled, reconcile_everything
from services.usage.handlers import ledger_handler, left_to_resume, removing_old, resuming
from services.usage.ledger_store import LedgerStore
from services.usage.pending import GROUP, Pending, pending_events
from services.usage.plan_routes import plan_routes
from services.usage.plan_store import PLANS, PlanStore
from services.usage.retention import Retention
from services.usage.routes import usage_routes
from services.usage.scheduled_reconcile import ScheduledReconcile
from services.usage.settings import UsageSettings
from services.usage.thresholds import Thresholds
from shared.contracts.contract import now_utc
from shared.contracts.ids import new_id
from shared.contracts.topics import COMPLETED, USAGE_RECORDED
from shared.messaging.batch_runner import BatchRunner
from shared.messaging.producer import EventProducer
from shared.observability.periodic import Periodic
from shared.observability.service import Component, run, run_service
from shared.observability.service_http import internal_app
from shared.observability.setup import Telemetry, setup
from shared.storage.documents import Database
from shared.storage.opening import open_database
from shared.storage.redis_client import open_redis

SERVICE = "usage"
_RESUME_EVERY_SECONDS = 1.0
_RETENTION_EVERY_SECONDS = 3600.0
_ASK_FOR_RECONCILING_EVERY_SECONDS = 30.0


@dataclass(frozen=True)
class UsageApp:
    """The parts of a usage process, ready to run."""

    settings: UsageSettings
    telemetry: Telemetry
    http: FastAPI
    components: tuple[Component, ...]

    def run(self) -> None:
        """Serves until SIGTERM, then drains."""
        # What exists now stays for good: reading statistics makes thousands of objects, and the collector need not look
        # at all the others each time.
        gc.collect()
        gc.freeze()
        run(
            run_service(
                telemetry=self.telemetry,
                http_app=self.http,
                host=self.settings.usage_host,
                port=self.settings.usage_port,
                components=self.components,
                grace_seconds=self.settings.shutdown_grace_seconds,
            )
        )


def build_app(settings: UsageSettings) -> UsageApp:
    """All adapters of the usage service, wired; nothing is started yet."""
    telemetry = setup(SERVICE, settings)
    database = open_database(settings, SERVICE)
    ledger = LedgerStore(database)
    plans = PlanStore(database.collection(PLANS))
    producer = EventProducer(settings, source=SERVICE)
    announcements = OutboxAnnouncements(database, producer)
    thresholds = Thresholds(ledger, plans, announcements)
    retention = Retention(ledger.sealed, timedelta(days=settings.usage_event_retention_days))
    counting = CountBatch(
        ledger,
        ledger.registry,
        owner=new_id(),
        lease_seconds=LEASE_SECONDS,
        notice=thresholds.notice,
        interrupted=left_to_resume,
    )
    runner = BatchRunner(
        settings=settings,
        topics=[USAGE_RECORDED, COMPLETED],
        group=GROUP,
        handler=ledger_handler(counting, retention.oldest_taken),
        producer=producer,
        telemetry=telemetry,
        max_records=settings.usage_batch_events,
    )
    telemetry.health.add_check("store", database.ping)
    telemetry.health.add_check("group", runner.check)
    token = settings.internal_token.get_secret_value()
    return UsageApp(
        settings=settings,
        telemetry=telemetry,
        http=internal_app(
            telemetry,
            internal_token=token,
            routers=[usage_routes(ledger), plan_routes(ledger, plans, thresholds.notice)],
        ),
        components=(
            database,
            producer,
            announcements,
            Periodic("resume batches", resuming(counting), _RESUME_EVERY_SECONDS),
            Periodic("event retention", removing_old(retention), _RETENTION_EVERY_SECONDS),
            *_reconciling(settings, database, ledger, retention),
            counting,
            runner,
        ),
    )


def _reconciling(
    settings: UsageSettings, database: Database, ledger: LedgerStore, retention: Retention
) -> list[Component]:
    if not settings.usage_reconcile_every_seconds:
        return []
    redis = open_redis(settings, max_connections=2)

    async def pending() -> Pending:
        return await pending_events(settings, GROUP, ledger, retention.oldest_taken(now_utc()))

    async def everything() -> Reconciled:
        return await reconcile_everything(ledger, RedisAdmissionStates(redis), pending)

    every = timedelta(seconds=settings.usage_reconcile_every_seconds)
    job = ScheduledReconcile(database, every, everything)
    return [ClosingRedis(redis), Periodic("reconcile", job.run_if_due, _ASK_FOR_RECONCILING_EVERY_SECONDS)]


@dataclass(frozen=True)
class ClosingRedis:
    """Component: a client that connects at its first use, and is closed at the end."""

    redis: Redis

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        await self.redis.aclose()
