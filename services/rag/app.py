"""Builds the rag service from its settings; the only module of rag that creates adapters."""

import asyncio
import contextlib

from services.rag.documents.documents import Documents
from services.rag.documents.recorded_outputs import DocumentFacts, RecordedOutputs
from services.rag.documents.routes import DocumentRoutes, erasure_routes
from services.rag.documents.sweep import Sweep
from services.rag.indexing.file_types import MAX_UPLOAD_BYTES
from services.rag.indexing.handlers import DocumentInbox, SubmitDocument, retrieve_work
from services.rag.indexing.index import Indexing
from services.rag.indexing.preparer import Preparer
from services.rag.search.calibration import Calibrations
from services.rag.search.embedding_holds import GatewayHolds, RunHolds, SearchHolds
from services.rag.search.embeddings import Embeddings
from services.rag.search.retrieve import Retrieval
from services.rag.search.search import HybridSearch
from services.rag.search.vector_index import IndexUnavailable, VectorIndex
from services.rag.settings import RagSettings
from services.rag.store import RagStore
from shared.contracts.topics import DOCUMENTS_SUBMITTED, RETRIEVE
from shared.contracts.upgrade_tasks import Stage
from shared.llm.client import ModelClient
from shared.messaging.consume.stage_runner import StageRunner
from shared.messaging.publish.outbox import FACT_SWEEP_SECONDS, outbox_collection
from shared.messaging.publish.producer import EventProducer
from shared.messaging.publish.progress import ProgressLog
from shared.privacy.sealing import Vault
from shared.service.app import ServiceApp
from shared.service.http import internal_app
from shared.service.ledger_client import LedgerClient
from shared.service.process import Periodic
from shared.service.recorded_stage import RecordedStage, spent_route
from shared.service.telemetry import Telemetry, setup
from shared.storage.opening import open_database, open_redis

SERVICE = "rag"
RETRIEVE_GROUP = "rag.retrieve"
INDEX_GROUP = "rag.index"
INDEX_TIME_LIMIT_SECONDS = 1800


class _WarmUp:
    """Loads LanceDB in the background if there are documents, so that the first search does not wait for it."""

    def __init__(self, store: RagStore, index: VectorIndex) -> None:
        self._store = store
        self._index = index
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if await self._store.any_space():
            self._task = asyncio.create_task(self._warm())

    async def stop(self, grace_seconds: float) -> None:
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _warm(self) -> None:
        with contextlib.suppress(IndexUnavailable):
            await self._index.warm()


def build_app(settings: RagSettings) -> ServiceApp:
    """Connects all parts of rag; starts nothing."""
    telemetry = setup(SERVICE, settings)
    token = settings.internal_token.get_secret_value()
    vault = Vault.from_settings(settings)
    database = open_database(settings, SERVICE)
    redis = open_redis(settings)
    producer = EventProducer(settings, source=SERVICE)
    ledger = LedgerClient(settings.usage_url, token)
    progress = ProgressLog(redis)
    model = ModelClient(settings)
    store = RagStore(database)
    index = VectorIndex(settings.index_uri)
    outputs = RecordedOutputs(database.collection(outbox_collection("outputs")), producer, ledger, store, vault)
    facts = DocumentFacts(outputs)
    preparer = Preparer(
        check_seconds=settings.rag_check_seconds,
        prepare_seconds=settings.rag_prepare_seconds,
        processes=settings.rag_index_concurrency,
    )
    embeddings = Embeddings(model, store.embeddings, vault, settings.openai_embedding_model)
    calibrations = Calibrations(
        model, store.calibrations, floor=settings.rag_score_floor, ceiling=settings.rag_score_ceiling
    )
    search = HybridSearch(store, index, embeddings, calibrations)
    documents = Documents(store, index, preparer, SubmitDocument(producer))
    holds = GatewayHolds(settings.gateway_url, token)
    runs = RunHolds(store, embeddings, holds)
    indexing = Indexing(
        store=store, index=index, preparer=preparer, embeddings=embeddings, vault=vault, announcements=facts, runs=runs
    )
    sweep = Sweep(
        store=store,
        index=index,
        documents=documents,
        embeddings=embeddings,
        outputs=outputs,
        runs=runs,
        resubmit_seconds=settings.rag_resubmit_seconds,
        give_up_seconds=settings.rag_give_up_hours * 3600,
        output_seconds=settings.rag_output_hours * 3600,
        retention_seconds=settings.result_retention_days * 86_400,
    )
    retrieve, submitted = _runners(settings, telemetry, producer, outputs, progress, search, vault, indexing)
    routes = DocumentRoutes(
        documents=documents,
        search=search,
        vault=vault,
        facts=facts,
        holds=SearchHolds(embeddings, holds),
        query_seconds=settings.rag_query_seconds,
    )
    telemetry.health.add_check("store", database.ping)
    telemetry.health.add_check("index", index.ping)
    telemetry.health.add_check("redis", redis.ping)
    telemetry.health.add_check("retrieve group", retrieve.check)
    telemetry.health.add_check("index group", submitted.check)
    facts_sweep = Periodic("fact sweep", outputs.sweep_all, FACT_SWEEP_SECONDS)
    background = Periodic("rag sweep", sweep.run, settings.rag_sweep_seconds)
    return ServiceApp(
        telemetry=telemetry,
        host=settings.rag_host,
        port=settings.rag_port,
        grace_seconds=settings.shutdown_grace_seconds,
        http=internal_app(
            telemetry,
            internal_token=token,
            routers=[routes.router(), erasure_routes(store, outputs), spent_route(outputs)],
            most_body_bytes=MAX_UPLOAD_BYTES,
        ),
        components=(
            *(database, progress, producer, ledger, holds, model, calibrations, index, _WarmUp(store, index)),
            *(facts_sweep, background, retrieve, submitted),
        ),
    )


def _runners(
    settings: RagSettings,
    telemetry: Telemetry,
    producer: EventProducer,
    outputs: RecordedOutputs,
    progress: ProgressLog,
    search: HybridSearch,
    vault: Vault,
    indexing: Indexing,
) -> tuple[StageRunner, StageRunner]:
    """The consumers of the two inboxes: retrieve tasks and submitted documents."""
    stage = RecordedStage(
        stage=Stage.RAG,
        outputs=outputs,
        producer=producer,
        progress=progress,
        work=retrieve_work(Retrieval(search, vault, query_seconds=settings.rag_query_seconds)),
    )
    retrieve = StageRunner(
        settings=settings,
        topic=RETRIEVE,
        group=RETRIEVE_GROUP,
        handler=stage.handle,
        give_up=stage.give_up,
        producer=producer,
        telemetry=telemetry,
    )
    inbox = DocumentInbox(indexing)
    submitted = StageRunner(
        # Indexing a long document takes longer than any stage of an upgrade may.
        settings=settings.model_copy(update={"stage_time_limit_seconds": INDEX_TIME_LIMIT_SECONDS}),
        topic=DOCUMENTS_SUBMITTED,
        group=INDEX_GROUP,
        handler=inbox.handle,
        give_up=inbox.give_up,
        producer=producer,
        telemetry=telemetry,
        concurrency=settings.rag_index_concurrency,
    )
    return retrieve, submitted
