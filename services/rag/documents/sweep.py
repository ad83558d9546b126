"""Repairs and cleans up rag's data in the background: unindexed documents, remains of killed runs, expired records."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from services.rag.documents.documents import Documents
from services.rag.documents.recorded_outputs import RecordedOutputs
from services.rag.search.embedding_holds import RunHolds
from services.rag.search.embeddings import Embeddings
from services.rag.search.vector_index import IndexUnavailable, VectorIndex
from services.rag.store import DELETED, FAILED, INDEXED, PENDING, RECEIVING, RagStore, ago, from_now
from shared.contracts.contract import now_utc, period_of
from shared.messaging.errors import Transient
from shared.observability.logs import get_logger
from shared.service.recorded_stage import expire_outputs
from shared.storage.documents import StorageUnavailable

# Longer than any search that may still read an older version of a table.
KEEP_VERSIONS = timedelta(seconds=10)
_PURGE_COMPLETE_SECONDS = 2 * KEEP_VERSIONS.total_seconds()
_KEEP_TOMBSTONE_SECONDS = 3600
_UNFINISHED_UPLOAD_SECONDS = 600
_STALE_RUN_SECONDS = 3600
_REINDEX_AFTER_SECONDS = 600
_QUERY_CACHE_SECONDS = 7 * 86_400
_BATCH = 100
_REINDEX_BATCH = 5

log = get_logger(__name__)


class Sweep:
    """The steps of one sweep. Safe to run in several processes at once, and to cancel at any point."""

    def __init__(
        self,
        *,
        store: RagStore,
        index: VectorIndex,
        documents: Documents,
        embeddings: Embeddings,
        outputs: RecordedOutputs,
        runs: RunHolds,
        resubmit_seconds: float,
        give_up_seconds: float,
        output_seconds: float,
        retention_seconds: float,
    ) -> None:
        self._store = store
        self._index = index
        self._documents = documents
        self._embeddings = embeddings
        self._outputs = outputs
        self._runs = runs
        self._resubmit_seconds = resubmit_seconds
        self._give_up_seconds = give_up_seconds
        # Data of an upgrade must not outlive the upgrade.
        self._output_seconds = min(output_seconds, retention_seconds)
        self._query_seconds = min(_QUERY_CACHE_SECONDS, retention_seconds)

    async def run(self) -> None:
        """Runs all steps; one that fails because of an outage does not prevent the others."""
        steps: tuple[Callable[[], Awaitable[None]], ...] = (
            self.submit_again,
            self.submit_for_new_model,
            self.drop_unfinished_uploads,
            self.purge_deleted,
            self.drop_stale_runs,
            self.end_holds,
            self.compact,
            self.expire,
        )
        for step in steps:
            try:
                await step()
            except (StorageUnavailable, IndexUnavailable, Transient) as error:
                log.warning("sweep_step_failed", step=step.__name__, error=type(error).__name__)

    async def submit_again(self) -> None:
        """Submits documents again that have been pending for long; fails those that are too old."""
        waiting = await self._store.documents.find(
            {"status": PENDING, "submittedAt": {"$lt": ago(self._resubmit_seconds)}},
            sort=[("submittedAt", 1)],
            limit=_BATCH,
        )
        for record in waiting:
            if record["createdAt"] < ago(self._give_up_seconds):
                await self._store.documents.update_one(
                    {"_id": record["_id"], "status": PENDING},
                    {
                        "$set": {
                            "status": FAILED,
                            "error": "The document could not be indexed in time. Upload it again.",
                        }
                    },
                )
            elif record["leaseUntil"] < from_now(0):
                await self._submit(record)

    async def submit_for_new_model(self) -> None:
        """Submits documents for indexing whose vectors are of another model than the current one; they stay visible."""
        live = self._embeddings.live_space
        if live is None:
            return
        outdated = await self._store.documents.find(
            {
                "status": INDEXED,
                "submittedAt": {"$lt": ago(_REINDEX_AFTER_SECONDS)},
                "space": {"$ne": live.key},
            },
            limit=_REINDEX_BATCH,
        )
        for record in outdated:
            await self._submit({**record, "period": period_of(now_utc())})

    async def _submit(self, record: dict[str, Any]) -> None:
        """Submits a document unless another process has: the update requires the `submittedAt` that was read."""
        ours = await self._store.documents.update_one(
            {"_id": record["_id"], "status": record["status"], "submittedAt": record["submittedAt"]},
            {"$set": {"submittedAt": from_now(0), "period": record["period"]}, "$inc": {"submissions": 1}},
        )
        if ours:
            await self._documents.submit(record)

    async def drop_unfinished_uploads(self) -> None:
        """Deletes uploads whose process was killed before it answered the request."""
        unfinished = {"status": RECEIVING, "submittedAt": {"$lt": ago(_UNFINISHED_UPLOAD_SECONDS)}}
        for record in await self._store.documents.find(unfinished, limit=_BATCH):
            await self._store.delete_content(record["tenantId"], record["_id"])
            await self._store.documents.delete_many({"_id": record["_id"], "status": RECEIVING})

    async def purge_deleted(self) -> None:
        """Removes deleted documents from the index files and from recorded outputs, and last their tombstones."""
        tombstones = await self._store.documents.find({"status": DELETED}, sort=[("submittedAt", 1)], limit=_BATCH)
        unpurged = [record for record in tombstones if not record.get("purged")]
        for tenant_id in dict.fromkeys(record["tenantId"] for record in unpurged):
            await self._purge(tenant_id, [r for r in unpurged if r["tenantId"] == tenant_id])
        for record in tombstones:
            if record.get("purged") and record["submittedAt"] < ago(_KEEP_TOMBSTONE_SECONDS):
                await self._documents.clear(record["tenantId"], record["_id"])
                await self._store.documents.delete_many({"_id": record["_id"], "status": DELETED})

    async def _purge(self, tenant_id: str, deleted: list[dict[str, Any]]) -> None:
        # Computed before the work: no version that this purge keeps contains a document deleted before that time.
        complete_before = ago(_PURGE_COMPLETE_SECONDS)
        for record in deleted:
            await self._documents.clear(tenant_id, record["_id"])
        ids = {record["_id"] for record in deleted}
        await self._outputs.forget(tenant_id, ids, now_utc() - timedelta(seconds=self._output_seconds))
        for space in await self._store.spaces(tenant_id):
            await self._index.purge(tenant_id, space, KEEP_VERSIONS)
        done = [record["_id"] for record in deleted if record["submittedAt"] < complete_before]
        if done:
            await self._store.documents.update_many({"_id": {"$in": done}}, {"$set": {"purged": True}})

    async def drop_stale_runs(self) -> None:
        """Deletes the rows of indexing runs that were killed; they were never visible."""
        stale = {"startedAt": {"$lt": ago(_STALE_RUN_SECONDS)}}
        for run in await self._store.runs.find(stale, limit=_BATCH):
            record = await self._store.document(run["tenantId"], run["documentId"])
            for space in await self._store.spaces(run["tenantId"]):
                if record is not None and record["generation"] == run["_id"]:
                    await self._index.delete_document(
                        run["tenantId"], space, run["documentId"], keep=record["generation"]
                    )
                else:
                    await self._index.delete_generation(run["tenantId"], space, run["_id"])
            await self._runs.end(run["_id"])

    async def end_holds(self) -> None:
        """Ends the holds of runs that ended while the gateway was unavailable."""
        await self._runs.end_marked()

    async def compact(self) -> None:
        """Compacts the tables to which this process has added rows."""
        for tenant_id, space in self._index.take_grown():
            await self._index.compact(tenant_id, space, KEEP_VERSIONS)

    async def expire(self) -> None:
        """Deletes old cached vectors of queries and old recorded outputs."""
        await self._store.embeddings.delete_many({"documentId": "", "createdAt": {"$lt": ago(self._query_seconds)}})
        await expire_outputs(self._outputs, now_utc() - timedelta(seconds=self._output_seconds))
