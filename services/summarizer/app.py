"""Builds the summarizer from its settings. The only place here that makes adapters."""

from dataclasses import dataclass
from datetime import timedelta

from fastapi import FastAPI

from services.summarizer.handlers import summarize_work
from services.summarizer.routes import erasure_routes
from services.summarizer.settings import SummarizerSettings
from services.summarizer.summary_cache import SUMMARIES, StoredSummaryCache
from services.summarizer.summary_model import INSTRUCTIONS, LlmSummaryModel
from shared.contracts.contract import now_utc
from shared.contracts.topics import SUMMARIZE
from shared.contracts.upgrade_tasks import Stage
from shared.llm.client import ModelClient
from shared.messaging.ledger_client import LedgerClient
from shared.messaging.outbox import FactOutbox, outbox_collection
from shared.messaging.producer import EventProducer
from shared.messaging.progress import ProgressLog
from shared.messaging.recorded_stage import RecordedStage, expire_outputs
from shared.messaging.spent_route import spent_route
from shared.messaging.stage_runner import StageRunner
from shared.observability.periodic import Periodic
from shared.observability.service import Component, run, run_service
from shared.observability.service_http import internal_app
from shared.observability.setup import Telemetry, setup
from shared.privacy.sealing import Vault
from shared.storage.opening import open_database
from shared.storage.redis_client import open_redis

SERVICE = "summarizer"
GROUP = "summarizer.stage"
_EXPIRY_EVERY_SECONDS = 3600.0


@dataclass(frozen=True)
class SummarizerApp:
    """The parts of a summarizer process, ready to run."""

    settings: SummarizerSettings
    telemetry: Telemetry
    http: FastAPI
    components: tuple[Component, ...]

    def run(self) -> None:
        """Serves until SIGTERM, then drains."""
        run(
            run_service(
                telemetry=self.telemetry,
                http_app=self.http,
                host=self.settings.summarizer_host,
                port=self.settings.summarizer_port,
                components=self.components,
                grace_seconds=self.settings.shutdown_grace_seconds,
            )
        )


def build_app(settings: SummarizerSettings) -> SummarizerApp:
    """All adapters of the summarizer, wired; nothing is started yet."""
    telemetry = setup(SERVICE, settings)
    token = settings.internal_token.get_secret_value()
    database = open_database(settings, SERVICE)
    redis = open_redis(settings)
    producer = EventProducer(settings, source=SERVICE)
    ledger = LedgerClient(settings.usage_url, token)
    progress = ProgressLog(redis)
    outputs = FactOutbox(database.collection(outbox_collection("outputs")), producer, ledger)
    keep = timedelta(days=settings.result_retention_days)
    cache = StoredSummaryCache(
        database.collection(SUMMARIES), min(keep, timedelta(days=settings.summarizer_cache_days))
    )
    client = ModelClient(settings)
    model = LlmSummaryModel(client, Vault.from_settings(settings), settings.summarizer_max_tokens)
    # A summary by other instructions or another model is another summary.
    version = f"{settings.openai_model}\n{INSTRUCTIONS}"
    stage = RecordedStage(
        stage=Stage.SUMMARIZER,
        outputs=outputs,
        producer=producer,
        progress=progress,
        work=summarize_work(cache, model, version),
    )
    runner = StageRunner(
        settings=settings,
        topic=SUMMARIZE,
        group=GROUP,
        handler=stage.handle,
        give_up=stage.give_up,
        producer=producer,
        telemetry=telemetry,
    )
    expiry = Periodic("output expiry", lambda: expire_outputs(outputs, now_utc() - keep), _EXPIRY_EVERY_SECONDS)
    telemetry.health.add_check("store", database.ping)
    telemetry.health.add_check("redis", redis.ping)
    telemetry.health.add_check("group", runner.check)
    return SummarizerApp(
        settings=settings,
        telemetry=telemetry,
        http=internal_app(
            telemetry, internal_token=token, routers=[erasure_routes(cache, outputs), spent_route(outputs)]
        ),
        components=(database, progress, producer, ledger, client, cache, outputs, expiry, runner),
    )
