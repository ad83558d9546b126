"""What a deleted workspace leaves behind is erased: its keys, upgrades, documents, and answers kept for repeats."""

from typing import Protocol

from services.gateway.identity.api_keys import ApiKeys
from services.gateway.identity.workspaces import Workspaces
from services.gateway.problems import ProblemError
from services.gateway.upgrades.erasure import Erasure
from shared.contracts.internal_http import DocumentView
from shared.contracts.problems import NOT_FOUND

_BATCH = 10
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
        for workspace_id in await self._workspaces.to_purge(_BATCH):
            await self._keys.revoke_all(workspace_id)
            await self._erasure.of_tenant(workspace_id, None)
            await self._delete_documents(workspace_id)
            await self._claims.forget_all(workspace_id)
            await self._workspaces.purged(workspace_id)
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
