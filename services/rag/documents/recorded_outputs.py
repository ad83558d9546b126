"""Stores the outputs of the retrieve stage, and publishes rag's events until the usage ledger has counted them."""

import json
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any

from services.rag.store import RagStore
from shared.contracts.contract import id_floor, new_id
from shared.contracts.documents import DocumentIndexed
from shared.contracts.topics import DOCUMENTS_INDEXED, USAGE_RECORDED
from shared.contracts.upgrade_tasks import SealedText, StageOutput
from shared.contracts.usage import UsageRecorded
from shared.messaging.errors import Transient
from shared.messaging.publish.outbox import Fact, FactOutbox, Ledger
from shared.messaging.publish.producer import EventProducer
from shared.privacy.placeholders import placeholders_in
from shared.privacy.sealing import Vault
from shared.storage.documents import Collection as DocumentCollection
from shared.storage.documents import StorageUnavailable

_PAGE = 200


class RecordedOutputs(FactOutbox):
    """The stage's recorded outputs, without the chunks of documents that were deleted after an output was recorded."""

    def __init__(
        self, records: DocumentCollection, producer: EventProducer, ledger: Ledger, store: RagStore, vault: Vault
    ) -> None:
        super().__init__(records, producer, ledger)
        self._store = store
        self._vault = vault

    async def find(self, record_id: str) -> dict[str, Any] | None:
        """Returns the record with that id, or None. Raises Transient while the store is unavailable."""
        record = await super().find(record_id)
        if record is None or not record["content"].get("chunks"):
            return record
        cited = {chunk["documentId"] for chunk in record["content"]["chunks"]}
        try:
            shown = [id for id in cited if await self._store.document(record["tenantId"], id)]
        except StorageUnavailable as error:
            raise Transient(f"storage: {error}") from error
        content = _only(record["content"], shown.__contains__, record, self._vault)
        return record if content is None else {**record, "content": content}

    async def forget(self, tenant_id: str, document_ids: Collection[str], recorded_after: datetime) -> None:
        """Removes documents from the tenant's outputs recorded since `recorded_after`. Raises StorageUnavailable."""
        last = id_floor(recorded_after)
        while True:
            records = await self.records.find(
                {"tenantId": tenant_id, "_id": {"$gt": last}}, sort=[("_id", 1)], limit=_PAGE
            )
            for record in records:
                content = _only(record["content"], lambda id: id not in document_ids, record, self._vault)
                if content is not None:
                    await self.records.update_one({"_id": record["_id"]}, {"$set": {"content": content}})
            if len(records) < _PAGE:
                return
            last = records[-1]["_id"]


class DocumentFacts:
    """Publishes events about indexing and searching, through the outbox of the stage."""

    def __init__(self, outbox: RecordedOutputs) -> None:
        self._outbox = outbox

    async def indexed(self, fact: DocumentIndexed, event_id: str) -> None:
        """Publishes an indexing result, once per `event_id`. Raises Transient while the store is unavailable."""
        owed = Fact(DOCUMENTS_INDEXED, fact.tenant_id, event_id, fact)
        record, _ = await self._outbox.record(f"{fact.document_id}:{event_id}", fact.tenant_id, {}, [owed])
        await self._outbox.publish(record)

    async def used(self, fact: UsageRecorded) -> None:
        """Publishes usage that belongs to no upgrade. Raises Transient while the store is unavailable."""
        owed = Fact(USAGE_RECORDED, fact.tenant_id, fact.event_id, fact)
        record, _ = await self._outbox.record(f"{new_id()}:{fact.event_id}", fact.tenant_id, {}, [owed])
        await self._outbox.publish(record)


def _only(
    content: dict[str, Any], keep: Callable[[str], bool], record: dict[str, Any], vault: Vault
) -> dict[str, Any] | None:
    """The output with only the chunks of documents for which `keep` is true, and their values; None when all stay."""
    if not content.get("chunks"):
        return None
    output = StageOutput.model_validate(content)
    chunks = [chunk for chunk in output.chunks if keep(chunk.document_id)]
    if len(chunks) == len(output.chunks):
        return None
    used = placeholders_in([text for chunk in chunks for text in (chunk.title, chunk.text)])
    sealed = _resealed(output.sealed_pii, used, record, vault) if output.sealed_pii else None
    return output.model_copy(update={"chunks": chunks, "sealed_pii": sealed}).to_document()


def _resealed(sealed: SealedText, used: Collection[str], record: dict[str, Any], vault: Vault) -> SealedText | None:
    owner = {"tenant_id": record["tenantId"], "subject_id": record["_id"]}
    stored = json.loads(vault.open(sealed, **owner))
    stored["values"] = {placeholder: value for placeholder, value in stored["values"].items() if placeholder in used}
    return vault.seal(json.dumps(stored), **owner) if stored["values"] else None
