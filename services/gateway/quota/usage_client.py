"""Plans and counters, over the usage service's internal HTTP."""

from collections.abc import Sequence
from datetime import date
from typing import Any, Protocol, TypeVar

import httpx
from pydantic import ValidationError

from shared.contracts.contract import Contract
from shared.contracts.internal_http import INTERNAL_TOKEN_HEADER, EventIds
from shared.contracts.problems import INVALID_REQUEST
from shared.contracts.quota import PlanChange, TenantQuota, TenantStanding
from shared.contracts.upgrade_http import FieldProblem
from shared.service.internal_client import retry_once_on_disconnect

_TIMEOUT = httpx.Timeout(3.0, connect=1.0)
_LIMITS = httpx.Limits(max_connections=16)
_JSON = {"Content-Type": "application/json"}

ContractT = TypeVar("ContractT", bound=Contract)


class _Refusal(Contract):
    errors: list[FieldProblem] = []


class UsageUnavailable(Exception):
    """The usage service did not answer; ask again later."""


class RangeRefused(Exception):
    """The range of days makes no sense; `errors` name the fields."""

    def __init__(self, errors: Sequence[FieldProblem]) -> None:
        super().__init__("the range makes no sense")
        self.errors = list(errors)


class Usage(Protocol):
    """Every call may raise UsageUnavailable."""

    async def quota(self, tenant_id: str, period: str) -> TenantQuota:
        """The tenant's plan and counters."""

    async def standing(
        self, tenant_id: str, period: str, event_ids: Sequence[str], as_of: int | None = None
    ) -> TenantStanding:
        """Which of its events the tenant's counters lack, or lacked as of a version of a moment ago."""


class UsageClient:
    """Component. Every call raises UsageUnavailable."""

    def __init__(self, usage_url: str, internal_token: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=usage_url, timeout=_TIMEOUT, limits=_LIMITS, headers={INTERNAL_TOKEN_HEADER: internal_token}
        )

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        await self._http.aclose()

    async def quota(self, tenant_id: str, period: str) -> TenantQuota:
        return await self._send(TenantQuota, "GET", tenant_id, "quota", {"period": period})

    async def standing(
        self, tenant_id: str, period: str, event_ids: Sequence[str], as_of: int | None = None
    ) -> TenantStanding:
        """At most 10,000 events."""
        params = {"period": period} if as_of is None else {"period": period, "asOf": str(as_of)}
        question = EventIds(event_ids=list(event_ids))
        return await self._send(TenantStanding, "POST", tenant_id, "standing", params, question)

    async def set_plan(self, tenant_id: str, change: PlanChange, *, if_unset: bool = False) -> TenantQuota:
        """The quota of the current period under the plan that stands now."""
        params = {"ifUnset": "true"} if if_unset else {}
        return await self._send(TenantQuota, "PUT", tenant_id, "plan", params, change)

    async def stats(self, tenant_id: str, from_day: date | None, to_day: date | None, group_by: str | None) -> bytes:
        """`TenantStats` as JSON, as usage wrote it. Raises RangeRefused as well."""
        asked = {"from": from_day and from_day.isoformat(), "to": to_day and to_day.isoformat(), "groupBy": group_by}
        params = {name: value for name, value in asked.items() if value}
        try:
            answer = await retry_once_on_disconnect(
                lambda: self._http.get(f"/internal/tenants/{tenant_id}/stats", params=params)
            )
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
        options: dict[str, Any] = {"params": params}
        if body is not None:
            options |= {"content": body.to_json(), "headers": _JSON}
        path = f"/internal/tenants/{tenant_id}/{what}"
        try:
            answer = await retry_once_on_disconnect(lambda: self._http.request(method, path, **options))
            answer.raise_for_status()
            return model.model_validate_json(answer.content)
        except (httpx.HTTPError, ValidationError) as error:
            raise UsageUnavailable(type(error).__name__) from error
