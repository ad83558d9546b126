"""Erases the content of upgrades, and purges deleted workspaces.

Content is erased in the gateway's records at once. All other stores are asked to erase it until each has confirmed.
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
_OTHER_STORES_WITHIN_SECONDS = 20.0
# A late stage may store content after the end of its upgrade. This long after the deadline none does any more.
_LATE_WORK = timedelta(seconds=120)
_PURGE_BATCH = 10
_DOCUMENT_PAGE = 100

log = get_logger(__name__)


class HolderUnavailable(Exception):
    """A store with content did not answer; the sweep tries again."""


class ContentHolder(Protocol):
    async def erase(self, tenant_id: str, upgrade_id: str) -> bool:
        """Erases its content of an upgrade; returns whether there was any. Raises HolderUnavailable."""


class Erasure:
    """Erases content everywhere. `ends` holds results of ended upgrades, `others` hold content of earlier stages."""

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
        """Erases one upgrade. True when all of its content is gone, False when the sweep erases the rest.

        Raises StorageUnavailable.
        """
        await self._store.erase([record], self._clock())
        return all(await self._erase_in_other_stores([record]))

    async def of_tenant(self, tenant_id: str, user_ref: str | None) -> bool:
        """Erases all upgrades of one user of a tenant, or of the tenant. Returns and raises as `upgrade`."""
        until = time.monotonic() + _OTHER_STORES_WITHIN_SECONDS
        before, gone = None, True
        while records := await self._store.to_erase(tenant_id, user_ref, before=before, limit=_BATCH):
            before = records[-1].upgrade_id
            await self._store.erase(records, self._clock())
            # After that time only the records are erased here; the sweep does the other stores.
            gone = gone and time.monotonic() < until and all(await self._erase_in_other_stores(records))
        return gone

    async def of_old(self, created_before: datetime) -> int:
        """Erases upgrades accepted before then whose records cannot be deleted yet: they are open or uncounted.

        Returns how many there were. The sweep erases them in the other stores. Raises StorageUnavailable.
        """
        found = 0
        while records := await self._store.unfinished_before(format_utc(created_before), _BATCH):
            await self._store.erase(records, self._clock())
            found += len(records)
        return found

    async def sweep(self) -> int:
        """Continues unfinished erasures; returns how many upgrades are gone everywhere. Raises StorageUnavailable."""
        after, found = "", 0
        while records := await self._store.erasing(after, _BATCH):
            after = records[-1].upgrade_id
            gone = await self._erase_in_other_stores(records)
            found += sum(gone)
            if not any(gone):
                break
        return found

    async def _erase_in_other_stores(self, records: Sequence[AcceptedRecord]) -> list[bool]:
        """For each record, whether its content is gone. Recent ones stay marked, and the sweep erases them again."""
        turns = asyncio.Semaphore(_AT_ONCE)

        async def erase(record: AcceptedRecord) -> bool:
            async with turns:
                return await self._erase_in_holders(record)

        gone = list(await asyncio.gather(*map(erase, records)))
        final = self._clock() - _LATE_WORK
        done = [r.upgrade_id for r, is_gone in zip(records, gone, strict=True) if is_gone and r.deadline < final]
        if done:
            await self._store.mark_erased(done)
        return gone

    async def _erase_in_holders(self, record: AcceptedRecord) -> bool:
        try:
            # The result first: while there is none, the stages may still store content.
            ended = await self._ends.erase(record.tenant_id, record.upgrade_id)
            for holder in self._others:
                await holder.erase(record.tenant_id, record.upgrade_id)
        except HolderUnavailable as error:
            log.warning("content_not_erased_yet", upgrade_id=record.upgrade_id, error=str(error))
            return False
        # A record that has ended without a result in `ends` is so old that the result was deleted.
        return ended or record.has_ended()


class DocumentStore(Protocol):
    async def page(self, tenant_id: str, *, limit: int, before: str | None) -> list[DocumentView]:
        """Raises ProblemError."""

    async def delete(self, tenant_id: str, document_id: str) -> None:
        """Raises ProblemError."""


class TenantClaims(Protocol):
    async def forget_all(self, tenant_id: str) -> int:
        """Raises StorageUnavailable."""


class Purge:
    """Removes keys, upgrades and documents of deleted workspaces. Safe to interrupt and to repeat."""

    def __init__(
        self,
        *,
        workspaces: Workspaces,
        keys: ApiKeys,
        erasure: Erasure,
        documents: DocumentStore,
        claims: TenantClaims,
    ) -> None:
        self._workspaces = workspaces
        self._keys = keys
        self._erasure = erasure
        self._documents = documents
        self._claims = claims

    async def run(self) -> int:
        """Runs one round; returns how many were purged. Raises StorageUnavailable, or ProblemError if rag is down."""
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
        while documents := await self._documents.page(workspace_id, limit=_DOCUMENT_PAGE, before=None):
            for document in documents:
                try:
                    await self._documents.delete(workspace_id, document.id)
                except ProblemError as error:
                    if error.problem is not NOT_FOUND:
                        raise
