"""Builds the upgrader from its settings. The only place here that makes adapters."""

from dataclasses import dataclass
from datetime import timedelta

from fastapi import FastAPI

from services.upgrader.handlers import EndingStage
from services.upgrader.language_loading import LanguageModelLoading
from services.upgrader.results import RESULTS, Results
from services.upgrader.rewrite_model import LlmRewriteModel
from services.upgrader.routes import result_routes
from services.upgrader.settings import UpgraderSettings
from shared.contracts.contract import now_utc
from shared.contracts.topics import REWRITE
from shared.llm.client import ModelClient
from shared.messaging.ledger_client import LedgerClient
from shared.messaging.outbox import FactOutbox
from shared.messaging.producer import EventProducer
from shared.messaging.progress import ProgressLog
from shared.messaging.stage_runner import StageRunner
from shared.observability.periodic import Periodic
from shared.observability.service import Component, run, run_service
from shared.observability.service_http import internal_app
from shared.observability.setup import Telemetry, setup
from shared.privacy.sealing import Vault
from shared.storage.opening import open_database
from shared.storage.redis_client import open_redis

SERVICE = "upgrader"
GROUP = "upgrader.stage"
_EXPIRY_EVERY_SECONDS = 3600.0


@dataclass(frozen=True)
class UpgraderApp:
    """The parts of an upgrader process, ready to run."""

    settings: UpgraderSettings
    telemetry: Telemetry
    http: FastAPI
    components: tuple[Component, ...]

    def run(self) -> None:
        """Serves until SIGTERM, then drains."""
        run(
            run_service(
                telemetry=self.telemetry,
                http_app=self.http,
                host=self.settings.upgrader_host,
                port=self.settings.upgrader_port,
                components=self.components,
                grace_seconds=self.settings.shutdown_grace_seconds,
            )
        )


def build_app(settings: UpgraderSettings) -> UpgraderApp:
    """All adapters of the upgrader, wired; nothing is started yet."""
    telemetry = setup(SERVICE, settings)
    token = settings.internal_token.get_secret_value()
    database = open_database(settings, SERVICE)
    redis = open_redis(settings)
    producer = EventProducer(settings, source=SERVICE)
    ledger = LedgerClient(settings.usage_url, token)
    progress = ProgressLog(redis)
    outbox = FactOutbox(database.collection(RESULTS), producer, ledger)
    results = Results(outbox)
    client = ModelClient(settings)
    vault = Vault.from_settings(settings)
    model = LlmRewriteModel(client, vault, settings.upgrader_max_tokens, settings.upgrader_temperature)
    stage = EndingStage(results, model, progress)
    runner = StageRunner(
        settings=settings,
        topic=REWRITE,
        group=GROUP,
        handler=stage.handle,
        give_up=stage.give_up,
        producer=producer,
        telemetry=telemetry,
    )
    keep = timedelta(days=settings.result_retention_days)
    expiry = Periodic("result expiry", lambda: results.expire(now_utc() - keep), _EXPIRY_EVERY_SECONDS)
    telemetry.health.add_check("store", database.ping)
    telemetry.health.add_check("redis", redis.ping)
    telemetry.health.add_check("group", runner.check)
    return UpgraderApp(
        settings=settings,
        telemetry=telemetry,
        http=internal_app(telemetry, internal_token=token, routers=[result_routes(results)]),
        components=(LanguageModelLoading(), database, progress, producer, ledger, client, outbox, expiry, runner),
    )
