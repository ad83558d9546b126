"""Connects rag's use cases to Kafka: reads and publishes submitted documents, and maps outages to retries."""

from services.rag.indexing.index import Indexing
from services.rag.search.vector_index import IndexUnavailable
from shared.contracts.documents import DocumentSubmitted
from shared.contracts.topics import DOCUMENTS_SUBMITTED
from shared.contracts.upgrade_tasks import GivenUp, StageOutput, UpgradeTask
from shared.messaging.cloudevents import Envelope
from shared.messaging.errors import Transient, Unprocessable
from shared.messaging.publish.producer import EventProducer
from shared.observability.logs import get_logger
from shared.service.recorded_stage import StageWork
from shared.storage.documents import StorageUnavailable

log = get_logger(__name__)


class DocumentInbox:
    """Handles `documents.submitted.v1`. A document that cannot be indexed now stays pending."""

    def __init__(self, indexing: Indexing) -> None:
        self._indexing = indexing

    async def handle(self, envelope: Envelope) -> None:
        """Indexes a document. Raises Transient while the store or the index is unavailable."""
        submitted = envelope.data
        if not isinstance(submitted, DocumentSubmitted):
            raise Unprocessable("not a submitted document")
        try:
            await self._indexing.index(submitted.tenant_id, submitted.document_id)
        except (StorageUnavailable, IndexUnavailable) as error:
            raise Transient(type(error).__name__) from error

    async def give_up(self, envelope: Envelope, given_up: GivenUp) -> None:
        """Only logs: the document is still pending, and the sweep submits it again."""
        log.warning("indexing_put_off", reason=given_up.reason)


def retrieve_work(retrieval: StageWork) -> StageWork:
    """Wraps the work of the retrieve stage: outages of the store become Transient, which the runner retries."""

    async def work(task: UpgradeTask) -> StageOutput:
        try:
            return await retrieval(task)
        except StorageUnavailable as error:
            raise Transient(type(error).__name__) from error

    return work


class SubmitDocument:
    """Publishes `documents.submitted.v1`."""

    def __init__(self, producer: EventProducer) -> None:
        self._producer = producer

    async def __call__(self, submitted: DocumentSubmitted) -> None:
        """Raises Transient while the broker is unavailable."""
        await self._producer.publish(DOCUMENTS_SUBMITTED, submitted.tenant_id, submitted)
