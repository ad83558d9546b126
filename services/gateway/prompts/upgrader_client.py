"""Calls the upgrader's internal HTTP for a tenant's prompt templates."""

from typing import TypeVar

import httpx
from pydantic import ValidationError

from services.gateway.http.problems import unavailable
from services.gateway.http.upstream import passed_on
from shared.contracts.contract import Contract
from shared.contracts.prompts import PromptType
from shared.contracts.prompts_http import (
    NewPrompt,
    NewRollback,
    NewRollout,
    PromptPage,
    PromptPreview,
    PromptView,
    RolloutView,
)
from shared.contracts.upgrade_tasks import UpgradeTask
from shared.service.internal_client import InternalClient

ModelT = TypeVar("ModelT", bound=Contract)

_TIMEOUT_SECONDS = 10.0
_PASSED_ON = frozenset({"invalid_request", "conflict", "not_found"})
_PROMPTS = "/internal/prompts"


class UpgraderPrompts:
    """A tenant's versions, and the platform's. Component. Every call raises ProblemError with the client's answer."""

    def __init__(self, upgrader_url: str, internal_token: str) -> None:
        self._client = InternalClient(upgrader_url, internal_token, timeout_seconds=_TIMEOUT_SECONDS)

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        await self._client.stop(grace_seconds)

    async def create(self, tenant_id: str, prompt_id: str, by: str, new: NewPrompt) -> PromptView:
        """The new version, or the one that has this id already."""
        params = {"tenantId": tenant_id, "promptId": prompt_id, "by": by}
        return await self._send(PromptView, "POST", _PROMPTS, params, new)

    async def page(
        self, tenant_id: str, *, name: str | None, type_: PromptType | None, before: str | None, limit: int
    ) -> list[PromptView]:
        """Versions, newest first, from before the id `before` on."""
        asked = {"tenantId": tenant_id, "name": name, "type": type_, "before": before, "limit": str(limit)}
        params = {key: str(value) for key, value in asked.items() if value is not None}
        return (await self._send(PromptPage, "GET", _PROMPTS, params)).items

    async def find(self, tenant_id: str, prompt_id: str) -> PromptView:
        """One version of the tenant or of the platform."""
        return await self._send(PromptView, "GET", f"{_PROMPTS}/{prompt_id}", {"tenantId": tenant_id})

    async def preview(self, prompt_id: str, task: UpgradeTask) -> PromptPreview:
        """The messages that the version makes of an upgrade."""
        path = f"{_PROMPTS}/{prompt_id}/preview"
        return await self._send(PromptPreview, "POST", path, {"tenantId": task.tenant_id}, task)

    async def rollout(self, tenant_id: str, prompt_id: str) -> RolloutView:
        """Where a version is on its way."""
        return await self._send(RolloutView, "GET", f"{_PROMPTS}/{prompt_id}/rollout", {"tenantId": tenant_id})

    async def advance(self, tenant_id: str, prompt_id: str, by: str, new: NewRollout) -> RolloutView:
        """Starts a rollout; of a version on its way, takes the next step."""
        params = {"tenantId": tenant_id, "by": by}
        return await self._send(RolloutView, "POST", f"{_PROMPTS}/{prompt_id}/rollout", params, new)

    async def roll_back(self, tenant_id: str, prompt_id: str, by: str, reason: NewRollback) -> RolloutView:
        """Takes a canary back, or puts the version before into production."""
        params = {"tenantId": tenant_id, "by": by}
        return await self._send(RolloutView, "POST", f"{_PROMPTS}/{prompt_id}/rollback", params, reason)

    async def _send(
        self, model: type[ModelT], method: str, path: str, params: dict[str, str], body: Contract | None = None
    ) -> ModelT:
        try:
            answer = await self._client.request(method, path, params=params, body=body)
            if answer.is_success:
                return model.model_validate_json(answer.content)
        except (httpx.HTTPError, ValidationError):
            raise _unreachable() from None
        raise passed_on(answer, _PASSED_ON, not_found="There is no such prompt.") or _unreachable()


def _unreachable() -> Exception:
    return unavailable("Prompts cannot be reached right now.")
