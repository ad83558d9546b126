"""Composition root of the usage service: creates its adapters and use cases from the settings and connects them."""

from dataclasses import dataclass
from datetime import timedelta

from redis.asyncio import Redis

from services.usage.counting.batch_registry import LEASE_SECONDS
from services.usage.counting.count_batch import CountBatch
from services.usage.counting.handlers import ledger_handler, log_interrupted_batch, prune_job, resume_job
from services.usage.counting.ledger_store import LedgerStore
from services.usage.counting.retention import Retention
from services.usage.counting.routes import usage_routes
from services.usage.plans.plans import PLANS, PlanStore
from services.usage.plans.routes import plan_routes
from services.usage.plans.thresholds import ThresholdOutbox, Thresholds
from services.usage.reconciling.admission_states import RedisAdmissionStates
from services.usage.reconciling.full_reconciliation import ReconcileReport, ScheduledReconcile, reconcile_everything
from services.usage.reconciling.pending import GROUP, pending_reader
from services.usage.settings import UsageSettings
from shared.contracts.contract import new_id
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

_SERVICE = "usage"
_RESUME_EVERY_SECONDS = 1.0
_PRUNE_EVERY_SECONDS = 3600.0
_CHECK_RECONCILE_DUE_EVERY_SECONDS = 30.0


def build_app(settings: UsageSettings) -> ServiceApp:
    """The usage service, not started yet."""
    telemetry = setup(_SERVICE, settings)
    database = open_database(settings, _SERVICE)
    ledger = LedgerStore(database)
    plans = PlanStore(database.collection(PLANS))
    producer = EventProducer(settings, source=_SERVICE)
    threshold_outbox = ThresholdOutbox(database, producer)
    thresholds = Thresholds(ledger, plans, threshold_outbox)
    retention = Retention(ledger.sealed, timedelta(days=settings.usage_event_retention_days))
    counting = CountBatch(
        ledger,
        ledger.registry,
        owner=new_id(),
        lease_seconds=LEASE_SECONDS,
        on_counters_raised=thresholds.announce_reached,
        on_interrupted=log_interrupted_batch,
    )
    runner = BatchRunner(
        settings=settings,
        topics=[USAGE_RECORDED, COMPLETED],
        group=GROUP,
        handler=ledger_handler(counting, retention.oldest_accepted),
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
            routers=[usage_routes(ledger), plan_routes(ledger, plans, thresholds.announce_reached)],
        ),
        components=(
            database,
            producer,
            Periodic("fact sweep", threshold_outbox.sweep, FACT_SWEEP_SECONDS),
            Periodic("resume batches", resume_job(counting), _RESUME_EVERY_SECONDS),
            Periodic("event retention", prune_job(retention), _PRUNE_EVERY_SECONDS),
            *_reconciling(settings, database, ledger),
            counting,
            runner,
        ),
    )


def _reconciling(settings: UsageSettings, database: Database, ledger: LedgerStore) -> list[Component]:
    if not settings.usage_reconcile_every_seconds:
        return []
    redis = open_redis(settings, max_connections=2)

    async def reconcile() -> ReconcileReport:
        return await reconcile_everything(ledger, RedisAdmissionStates(redis), pending_reader(settings, ledger))

    every = timedelta(seconds=settings.usage_reconcile_every_seconds)
    job = ScheduledReconcile(database, every, reconcile)
    return [ClosingRedis(redis), Periodic("reconcile", job.run_if_due, _CHECK_RECONCILE_DUE_EVERY_SECONDS)]


@dataclass(frozen=True)
class ClosingRedis:
    """Component: closes a Redis client when the service stops. The client connects at its first use."""

    redis: Redis

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        await self.redis.aclose()
