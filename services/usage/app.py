"""Builds the usage service from its settings. The only place here that makes adapters."""

from dataclasses import dataclass
from datetime import timedelta

from fastapi import FastAPI

from services.usage.announcements import OutboxAnnouncements
from services.usage.batch_window import LEASE_SECONDS
from services.usage.count_batch import CountBatch
from services.usage.handlers import ledger_handler, removing_old, resuming
from services.usage.ledger_store import LedgerStore
from services.usage.plan_routes import plan_routes
from services.usage.plan_store import PLANS, PlanStore
from services.usage.retention import Retention
from services.usage.routes import usage_routes
from services.usage.settings import UsageSettings
from services.usage.thresholds import Thresholds
from shared.contracts.ids import new_id
from shared.contracts.topics import COMPLETED, USAGE_RECORDED
from shared.messaging.batch_runner import BatchRunner
from shared.messaging.producer import EventProducer
from shared.observability.periodic import Periodic
from shared.observability.service import Component, run, run_service
from shared.observability.service_http import internal_app
from shared.observability.setup import Telemetry, setup
from shared.storage.opening import open_database

SERVICE = "usage"
GROUP = "usage.ledger"
_RESUME_EVERY_SECONDS = 1.0
_RETENTION_EVERY_SECONDS = 3600.0


@dataclass(frozen=True)
class UsageApp:
    """The parts of a usage process, ready to run."""

    settings: UsageSettings
    telemetry: Telemetry
    http: FastAPI
    components: tuple[Component, ...]

    def run(self) -> None:
        """Serves until SIGTERM, then drains."""
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
        ledger, ledger.registry, owner=new_id(), lease_seconds=LEASE_SECONDS, notice=thresholds.notice
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
            runner,
        ),
    )
