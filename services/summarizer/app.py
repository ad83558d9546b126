"""Builds the summarizer from its settings: the composition root, where adapters are created."""

from datetime import timedelta
from functools import partial

from services.summarizer.settings import SummarizerSettings
from services.summarizer.summarize import summarize
from services.summarizer.summary_cache import SUMMARIES, StoredSummaryCache, erasure_routes
from services.summarizer.summary_model import INSTRUCTIONS, LlmSummaryModel
from shared.contracts.contract import now_utc
from shared.contracts.topics import SUMMARIZE
from shared.contracts.upgrade_tasks import Stage
from shared.llm.client import ModelClient
from shared.messaging.consume.stage_runner import StageRunner
from shared.messaging.publish.outbox import FACT_SWEEP_SECONDS, FactOutbox, outbox_collection
from shared.messaging.publish.producer import EventProducer
from shared.messaging.publish.progress import ProgressLog
from shared.privacy.sealing import Vault
from shared.service.app import ServiceApp
from shared.service.http import internal_app
from shared.service.ledger_client import LedgerClient
from shared.service.process import Periodic
from shared.service.recorded_stage import RecordedStage, expire_outputs, spent_route
from shared.service.repair_holds import GatewayRepairHolds
from shared.service.telemetry import setup
from shared.storage.opening import open_database, open_redis

SERVICE = "summarizer"
GROUP = "summarizer.stage"
_EXPIRY_EVERY_SECONDS = 3600.0


def build_app(settings: SummarizerSettings) -> ServiceApp:
    """Creates and connects all parts of the summarizer; starts none of them."""
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
    repair_holds = GatewayRepairHolds(Stage.SUMMARIZER, settings.gateway_url, token)
    model = LlmSummaryModel(client, Vault.from_settings(settings), repair_holds, settings.summarizer_max_tokens)
    # Part of every cache key: other instructions or another model produce other summaries.
    version = f"{settings.openai_model}\n{INSTRUCTIONS}"
    stage = RecordedStage(
        stage=Stage.SUMMARIZER,
        outputs=outputs,
        producer=producer,
        progress=progress,
        work=partial(summarize, cache=cache, model=model, version=version),
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
    facts = Periodic("fact sweep", outputs.sweep_all, FACT_SWEEP_SECONDS)
    expiry = Periodic("output expiry", lambda: expire_outputs(outputs, now_utc() - keep), _EXPIRY_EVERY_SECONDS)
    telemetry.health.add_check("store", database.ping)
    telemetry.health.add_check("redis", redis.ping)
    telemetry.health.add_check("group", runner.check)
    return ServiceApp(
        telemetry=telemetry,
        host=settings.summarizer_host,
        port=settings.summarizer_port,
        grace_seconds=settings.shutdown_grace_seconds,
        http=internal_app(
            telemetry, internal_token=token, routers=[erasure_routes(cache, outputs), spent_route(outputs)]
        ),
        components=(database, progress, producer, ledger, client, repair_holds, cache, facts, expiry, runner),
    )
