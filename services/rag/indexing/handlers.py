"""Kafka in: documents that wait to be indexed. (The other inbox, upgrades, is read by the recorded stage.)"""

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
    """Takes submitted documents to the indexing. A document that cannot be indexed now stays pending."""

    def __init__(self, indexing: Indexing) -> None:
        self._indexing = indexing

    async def handle(self, envelope: Envelope) -> None:
        """Raises Transient while the store or the index is out."""
        submitted = envelope.data
        if not isinstance(submitted, DocumentSubmitted):
            raise Unprocessable("not a submitted document")
        try:
            await self._indexing.index(submitted.tenant_id, submitted.document_id)
        except (StorageUnavailable, IndexUnavailable) as error:
            raise Transient(type(error).__name__) from error

    async def give_up(self, envelope: Envelope, given_up: GivenUp) -> None:
        """Nothing is lost: the document is still pending, and the sweep submits it again."""
        log.warning("indexing_put_off", reason=given_up.reason)


def retrieve_work(retrieval: StageWork) -> StageWork:
    """The stage's work, with the store's outages as what the runner retries."""

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
        """Raises Transient when the broker is out."""
        await self._producer.publish(DOCUMENTS_SUBMITTED, submitted.tenant_id, submitted)
