"""What rag tells the world about documents: recorded first, then published until it has arrived."""

from services.rag.recorded_outputs import RecordedOutputs
from shared.contracts.document_events import DocumentIndexed
from shared.contracts.ids import new_id
from shared.contracts.topics import DOCUMENTS_INDEXED, USAGE_RECORDED
from shared.contracts.usage_events import UsageRecorded
from shared.messaging.outbox import Fact


class DocumentFacts:
    """Facts about indexing and searching, through the outbox of the stage."""

    def __init__(self, outbox: RecordedOutputs) -> None:
        self._outbox = outbox

    async def indexed(self, fact: DocumentIndexed, event_id: str) -> None:
        """Says what became of a document, once per `event_id`. Raises Transient while the store is out."""
        owed = Fact(DOCUMENTS_INDEXED, fact.tenant_id, event_id, fact)
        record, _ = await self._outbox.record(f"{fact.document_id}:{event_id}", fact.tenant_id, {}, [owed])
        await self._outbox.publish(record)

    async def used(self, fact: UsageRecorded) -> None:
        """Books what was used outside of an upgrade. Raises Transient while the store is out."""
        owed = Fact(USAGE_RECORDED, fact.tenant_id, fact.event_id, fact)
        record, _ = await self._outbox.record(f"{new_id()}:{fact.event_id}", fact.tenant_id, {}, [owed])
        await self._outbox.publish(record)
