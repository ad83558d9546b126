"""Builds the usage service from its settings. The only place here that makes adapters."""

from dataclasses import dataclass
from datetime import timedelta

from redis.asyncio import Redis

from services.usage.counting.batch_registry import LEASE_SECONDS
from services.usage.counting.count_batch import CountBatch
from services.usage.counting.handlers import ledger_handler, left_to_resume, removing_old, resuming
from services.usage.counting.ledger_store import LedgerStore
from services.usage.counting.retention import Retention
from services.usage.counting.routes import usage_routes
from services.usage.plans.plans import PLANS, PlanStore
from services.usage.plans.routes import plan_routes
from services.usage.plans.thresholds import OutboxAnnouncements, Thresholds
from services.usage.reconciling.admission_states import RedisAdmissionStates
from services.usage.reconciling.full_reconciliation import Reconciled, ScheduledReconcile, reconcile_everything
from services.usage.reconciling.pending import GROUP, Pending, pending_events
from services.usage.settings import UsageSettings
from shared.contracts.contract import new_id, now_utc
from shared.contracts.topics import COMPLETED, USAGE_RECORDED
from shared.messaging.consume.batch_runner import BatchRunner
from shared.messaging.publish.outbox import FACT_SWEEP_SECONDS
from shared.messaging.publish.producer import EventProducer
from shared.service.app import ServiceApp
from shared.service.http import internal_app
from shared.service.process import Component, Periodic
from shared.service.telemetry import setup
from shared.storage.documents import Database
from shared.storage.opening import open_database, open_redis

SERVICE = "usage"
_RESUME_EVERY_SECONDS = 1.0
_RETENTION_EVERY_SECONDS = 3600.0
_ASK_FOR_RECONCILING_EVERY_SECONDS = 30.0


def build_app(settings: UsageSettings) -> ServiceApp:
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
    return ServiceApp(
        telemetry=telemetry,
        host=settings.usage_host,
        port=settings.usage_port,
        grace_seconds=settings.shutdown_grace_seconds,
        http=internal_app(
            telemetry,
            internal_token=token,
            routers=[usage_routes(ledger), plan_routes(ledger, plans, thresholds.notice)],
        ),
        components=(
            database,
            producer,
            Periodic("fact sweep", announcements.sweep, FACT_SWEEP_SECONDS),
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
