"""Holds quota for a repair: a second model call after an answer that was billed and could not be used.

The hold of an upgrade covers one answer of each stage. A stage takes a hold for a second one at the gateway, and does
without the repair where the tenant's quota has no room for it.
"""

import math
from datetime import datetime
from typing import Protocol

import httpx

from shared.contracts.contract import derived_id, now_utc
from shared.contracts.quota import EmbeddingsHold, EmbeddingsHoldEnd, SpentEvent
from shared.contracts.upgrade_tasks import Stage, UpgradeTask
from shared.observability.logs import get_logger
from shared.service.internal_client import InternalClient

_PATH = "/internal/holds/embeddings"
_TIMEOUT_SECONDS = 5.0
_LIVES_AFTER_DEADLINE_SECONDS = 10

log = get_logger(__name__)


class RepairHolds(Protocol):
    async def take(self, task: UpgradeTask, tokens: int) -> bool:
        """Whether a repair that uses at most so many tokens may be made."""

    async def end(self, upgrade_id: str, spent: SpentEvent | None) -> None:
        """Ends the upgrade's repair hold, if there is one. It stays until usage has counted `spent`."""


class OpenRepairHolds:
    """Allows every repair: for a stage whose tenants have no limits."""

    async def take(self, task: UpgradeTask, tokens: int) -> bool:
        return True

    async def end(self, upgrade_id: str, spent: SpentEvent | None) -> None: ...


class GatewayRepairHolds:
    """Repair holds of one stage, at the gateway. Component.

    A hold that is not ended expires soon after the deadline of its upgrade.
    """

    def __init__(self, stage: Stage, gateway_url: str, internal_token: str) -> None:
        self._stage = stage
        self._gateway = InternalClient(gateway_url, internal_token, timeout_seconds=_TIMEOUT_SECONDS)
        self._taken: dict[str, datetime] = {}

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        await self._gateway.stop(grace_seconds)

    async def take(self, task: UpgradeTask, tokens: int) -> bool:
        if task.origin == "eval":  # evals never count against a quota
            return True
        now = now_utc()
        left = max(0.0, (task.deadline - now).total_seconds())
        hold = EmbeddingsHold(
            hold_id=self._hold_id(task.upgrade_id),
            tenant_id=task.tenant_id,
            period=task.period,
            embeddings=0,
            tokens=tokens,
            lives_seconds=math.ceil(left) + _LIVES_AFTER_DEADLINE_SECONDS,
        )
        try:
            answer = await self._gateway.request("POST", _PATH, body=hold)
        except httpx.HTTPError as error:
            log.warning("repair_hold_unavailable", error=type(error).__name__)
            return False
        if answer.is_success:
            self._forget_past(now)
            self._taken[task.upgrade_id] = task.deadline
        return answer.is_success

    async def end(self, upgrade_id: str, spent: SpentEvent | None) -> None:
        if self._taken.pop(upgrade_id, None) is None:
            return
        ended = EmbeddingsHoldEnd(spent=[spent] if spent else [])
        try:
            await self._gateway.request("POST", f"{_PATH}/{self._hold_id(upgrade_id)}/end", body=ended)
        except httpx.HTTPError as error:
            log.warning("repair_hold_not_ended", error=type(error).__name__)

    def _hold_id(self, upgrade_id: str) -> str:
        return derived_id(upgrade_id, self._stage, "repair")

    def _forget_past(self, now: datetime) -> None:
        for upgrade_id in [found for found, deadline in self._taken.items() if deadline < now]:
            del self._taken[upgrade_id]
