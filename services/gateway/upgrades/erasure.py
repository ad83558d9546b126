"""Erases the content of upgrades and of deleted workspaces: from the gateway's records at once, from other stores
until they confirm.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from services.gateway.http.problems import ProblemError
from services.gateway.identity.api_keys import ApiKeys
from services.gateway.identity.workspaces import Workspaces
from services.gateway.upgrades.accepted_record import AcceptedRecord
from services.gateway.upgrades.accepted_store import AcceptedStore
from shared.contracts.contract import format_utc, now_utc
from shared.contracts.documents import DocumentView
from shared.contracts.problems import NOT_FOUND
from shared.observability.logs import get_logger

_BATCH = 200
_AT_ONCE = 16
_PATIENCE_SECONDS = 20.0
# A stage that was late may still have written something down after the end; nothing does after this.
_LATE_WORK = timedelta(seconds=120)

log = get_logger(__name__)


class HolderUnavailable(Exception):
    """A store of content cannot be reached; the erasure goes on later."""


class ContentHolder(Protocol):
    async def erase(self, tenant_id: str, upgrade_id: str) -> bool:
        """Erases what it has of an upgrade; whether there was anything. Raises HolderUnavailable."""


class Erasure:
    """`ends` is the holder that has something of every upgrade that has ended, `others` hold content on the way."""

    def __init__(
        self,
        store: AcceptedStore,
        *,
        ends: ContentHolder,
        others: Sequence[ContentHolder],
        clock: Callable[[], datetime] = now_utc,
    ) -> None:
        self._store = store
        self._ends = ends
        self._others = list(others)
        self._clock = clock

    async def upgrade(self, record: AcceptedRecord) -> bool:
        """Erases one upgrade. True when all of it is gone now, False when the rest goes in the background."""
        await self._store.erase([record], self._clock())
        return all(await self._everywhere([record]))

    async def of_tenant(self, tenant_id: str, user_ref: str | None) -> bool:
        """Erases all upgrades of one user of a tenant, or of the tenant; the answer is as for one.

        Raises StorageUnavailable; what was erased until then stays erased.
        """
        until = time.monotonic() + _PATIENCE_SECONDS
        before, gone = None, True
        while records := await self._store.to_erase(tenant_id, user_ref, before=before, limit=_BATCH):
            before = records[-1].upgrade_id
            await self._store.erase(records, self._clock())
            # What is not done in time here, the sweep finds by the records.
            gone = gone and time.monotonic() < until and all(await self._everywhere(records))
        return gone

    async def of_old(self, created_before: datetime) -> int:
        """Erases upgrades that were accepted before that and whose records cannot be deleted, for they have not ended
        or usage has not counted them; gives how many. The rest of it is the sweep's. Raises StorageUnavailable.
        """
        found = 0
        while records := await self._store.unfinished_before(format_utc(created_before), _BATCH):
            await self._store.erase(records, self._clock())
            found += len(records)
        return found

    async def sweep(self) -> int:
        """Goes on with what is not finished; gives how many are gone. Raises StorageUnavailable."""
        after, found = "", 0
        while records := await self._store.erasing(after, _BATCH):
            after = records[-1].upgrade_id
            gone = await self._everywhere(records)
            found += sum(gone)
            if not any(gone):
                break
        return found

    async def _everywhere(self, records: Sequence[AcceptedRecord]) -> list[bool]:
        """For each record whether nothing of it is left anywhere. The sweep sees those again that are still recent."""
        turns = asyncio.Semaphore(_AT_ONCE)

        async def erase(record: AcceptedRecord) -> bool:
            async with turns:
                return await self._holders_erase(record)

        gone = list(await asyncio.gather(*map(erase, records)))
        settled = self._clock() - _LATE_WORK
        done = [r.upgrade_id for r, is_gone in zip(records, gone, strict=True) if is_gone and r.deadline < settled]
        if done:
            await self._store.erased(done)
        return gone

    async def _holders_erase(self, record: AcceptedRecord) -> bool:
        try:
            # The end first: if there is none yet, the stages may still write something down.
            ended = await self._ends.erase(record.tenant_id, record.upgrade_id)
            for holder in self._others:
                await holder.erase(record.tenant_id, record.upgrade_id)
        except HolderUnavailable as error:
            log.warning("content_not_erased_yet", upgrade_id=record.upgrade_id, error=str(error))
            return False
        # One that is known to have ended and has no result there is so old that the result is deleted.
        return ended or record.has_ended()


_PURGE_BATCH = 10
_PAGE = 100


class TenantDocuments(Protocol):
    async def page(self, tenant_id: str, *, limit: int, before: str | None) -> list[DocumentView]:
        """Raises ProblemError."""

    async def delete(self, tenant_id: str, document_id: str) -> None:
        """Raises ProblemError."""


class TenantClaims(Protocol):
    async def forget_all(self, tenant_id: str) -> int:
        """Raises StorageUnavailable."""


class Purge:
    """One round looks at all deleted workspaces that may hold something. Safe to cut off and to do twice."""

    def __init__(
        self,
        *,
        workspaces: Workspaces,
        keys: ApiKeys,
        erasure: Erasure,
        documents: TenantDocuments,
        claims: TenantClaims,
    ) -> None:
        self._workspaces = workspaces
        self._keys = keys
        self._erasure = erasure
        self._documents = documents
        self._claims = claims

    async def run(self) -> int:
        """Gives how many were purged. Raises StorageUnavailable, and ProblemError while rag is out."""
        purged = 0
        for workspace_id in await self._workspaces.to_purge(_PURGE_BATCH):
            await self._keys.revoke_all(workspace_id)
            await self._erasure.of_tenant(workspace_id, None)
            await self._delete_documents(workspace_id)
            await self._claims.forget_all(workspace_id)
            await self._workspaces.mark_purged(workspace_id)
            purged += 1
        return purged

    async def _delete_documents(self, workspace_id: str) -> None:
        while documents := await self._documents.page(workspace_id, limit=_PAGE, before=None):
            for document in documents:
                try:
                    await self._documents.delete(workspace_id, document.id)
                except ProblemError as error:
                    if error.problem is not NOT_FOUND:
                        raise
