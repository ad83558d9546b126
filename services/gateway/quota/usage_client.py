"""Client of the usage service: plans, counters and statistics of tenants."""

from collections.abc import Sequence
from datetime import date
from typing import Protocol, TypeVar

import httpx
from pydantic import ValidationError

from shared.contracts.contract import Contract
from shared.contracts.internal_http import EventIds
from shared.contracts.problems import INVALID_REQUEST
from shared.contracts.quota import PlanChange, TenantQuota, TenantStanding
from shared.contracts.upgrade_http import FieldProblem
from shared.service.internal_client import InternalClient

_TIMEOUT_SECONDS = 3.0

ContractT = TypeVar("ContractT", bound=Contract)


class UsageUnavailable(Exception):
    """The usage service did not answer."""


class RangeRefused(Exception):
    """The range of days is not valid; `errors` name the fields."""

    def __init__(self, errors: Sequence[FieldProblem]) -> None:
        super().__init__("the range is not valid")
        self.errors = list(errors)


class Usage(Protocol):
    """Counters, as admission reads them. Every method may raise UsageUnavailable."""

    async def quota(self, tenant_id: str, period: str) -> TenantQuota:
        """The tenant's plan and counters in the period."""

    async def standing(
        self, tenant_id: str, period: str, event_ids: Sequence[str], as_of: int | None = None
    ) -> TenantStanding:
        """Which of the events, at most 10,000, are missing in the counters, or were at the recent version `as_of`."""


class UsageClient:
    """`Usage`, plan changes and statistics over internal HTTP. Component. Every method may raise UsageUnavailable."""

    def __init__(self, usage_url: str, internal_token: str) -> None:
        self._client = InternalClient(usage_url, internal_token, timeout_seconds=_TIMEOUT_SECONDS)

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        await self._client.stop(grace_seconds)

    async def quota(self, tenant_id: str, period: str) -> TenantQuota:
        return await self._send(TenantQuota, "GET", tenant_id, "quota", {"period": period})

    async def standing(
        self, tenant_id: str, period: str, event_ids: Sequence[str], as_of: int | None = None
    ) -> TenantStanding:
        params = {"period": period} if as_of is None else {"period": period, "asOf": str(as_of)}
        return await self._send(
            TenantStanding, "POST", tenant_id, "standing", params, EventIds(event_ids=list(event_ids))
        )

    async def set_plan(self, tenant_id: str, change: PlanChange, *, if_unset: bool = False) -> TenantQuota:
        """Sets the plan, with `if_unset` only for a tenant without one. Returns the resulting quota of this period."""
        params = {"ifUnset": "true"} if if_unset else {}
        return await self._send(TenantQuota, "PUT", tenant_id, "plan", params, change)

    async def stats(self, tenant_id: str, from_day: date | None, to_day: date | None, group_by: str | None) -> bytes:
        """`TenantStats` as JSON. Raises RangeRefused, too."""
        query = {"from": from_day and from_day.isoformat(), "to": to_day and to_day.isoformat(), "groupBy": group_by}
        params = {name: value for name, value in query.items() if value}
        try:
            answer = await self._client.request("GET", f"/internal/tenants/{tenant_id}/stats", params=params)
            if answer.status_code == INVALID_REQUEST.status:
                raise RangeRefused(_Refusal.model_validate_json(answer.content).errors)
            answer.raise_for_status()
        except (httpx.HTTPError, ValidationError) as error:
            raise UsageUnavailable(type(error).__name__) from error
        return answer.content

    async def _send(
        self,
        model: type[ContractT],
        method: str,
        tenant_id: str,
        what: str,
        params: dict[str, str],
        body: Contract | None = None,
    ) -> ContractT:
        path = f"/internal/tenants/{tenant_id}/{what}"
        try:
            answer = await self._client.request(method, path, params=params, body=body)
            answer.raise_for_status()
            return model.model_validate_json(answer.content)
        except (httpx.HTTPError, ValidationError) as error:
            raise UsageUnavailable(type(error).__name__) from error


class _Refusal(Contract):
    errors: list[FieldProblem] = []
