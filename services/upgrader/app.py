"""Builds the upgrader from its settings: the composition root, where adapters are created."""

from datetime import timedelta
from functools import partial

from services.upgrader.ending import EndingStage, Ladder
from services.upgrader.prompts.choosing import PromptChooser
from services.upgrader.prompts.events import PlatformPrompts, PromptEvents
from services.upgrader.prompts.library import LINES, VERSIONS, PromptLibrary
from services.upgrader.prompts.rollout_routes import RolloutRoutes
from services.upgrader.prompts.routes import PromptRoutes
from services.upgrader.reading.language import LanguageModelLoading
from services.upgrader.results import RESULTS, Results, result_routes
from services.upgrader.rewriting.rewrite_model import LlmRewriteModel, preview_of
from services.upgrader.settings import UpgraderSettings
from shared.contracts.contract import now_utc
from shared.contracts.topics import REWRITE
from shared.contracts.upgrade_tasks import Stage
from shared.llm.client import ModelClient
from shared.messaging.consume.stage_runner import StageRunner
from shared.messaging.publish.outbox import FACT_SWEEP_SECONDS, FactOutbox
from shared.messaging.publish.producer import EventProducer
from shared.messaging.publish.progress import ProgressLog
from shared.privacy.sealing import Vault
from shared.service.app import ServiceApp
from shared.service.http import internal_app
from shared.service.ledger_client import LedgerClient
from shared.service.process import Periodic
from shared.service.repair_holds import GatewayRepairHolds
from shared.service.telemetry import setup
from shared.storage.opening import open_database, open_redis

SERVICE = "upgrader"
GROUP = "upgrader.stage"
_EXPIRY_EVERY_SECONDS = 3600.0
_PROMPT_CHANGES_EVERY_SECONDS = 1.0


def build_app(settings: UpgraderSettings) -> ServiceApp:
    """Creates and connects all parts of the upgrader; starts none of them."""
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
    repair_holds = GatewayRepairHolds(Stage.UPGRADER, settings.gateway_url, token)

    def rewrite_model(model_client: ModelClient) -> LlmRewriteModel:
        limits = settings.upgrader_max_tokens, settings.upgrader_temperature
        return LlmRewriteModel(model_client, vault, repair_holds, *limits)

    second = settings.fallback_model()
    fallback_client = ModelClient(second, name="fallback") if second is not None else None
    ladder = Ladder(
        rewrite_model(client),
        results,
        fallback=rewrite_model(fallback_client) if fallback_client is not None else None,
        cached_for=timedelta(hours=settings.cached_answer_max_age_hours),
    )
    library = PromptLibrary(database.collection(VERSIONS), database.collection(LINES), PromptEvents(producer))
    stage = EndingStage(results, ladder, PromptChooser(library), repair_holds, progress)
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
    changes = Periodic("prompt changes", library.publish_unpublished, _PROMPT_CHANGES_EVERY_SECONDS)
    facts = Periodic("fact sweep", outbox.sweep_all, FACT_SWEEP_SECONDS)
    expiry = Periodic("result expiry", lambda: results.expire(now_utc() - keep), _EXPIRY_EVERY_SECONDS)
    telemetry.health.add_check("store", database.ping)
    telemetry.health.add_check("redis", redis.ping)
    telemetry.health.add_check("group", runner.check)
    return ServiceApp(
        telemetry=telemetry,
        host=settings.upgrader_host,
        port=settings.upgrader_port,
        grace_seconds=settings.shutdown_grace_seconds,
        http=internal_app(
            telemetry,
            internal_token=token,
            routers=[
                result_routes(results),
                PromptRoutes(library, partial(preview_of, vault=vault)).router(),
                RolloutRoutes(library).router(),
            ],
        ),
        components=(
            *(LanguageModelLoading(), database, progress, producer, ledger, client, repair_holds),
            *((fallback_client,) if fallback_client is not None else ()),
            *(PlatformPrompts(library), changes, facts, expiry, runner),
        ),
    )
