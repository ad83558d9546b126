"""The operators' route that changes a tenant's plan, and the component that sets the plan of the demo tenant."""

import asyncio
import contextlib
import hashlib
import hmac
from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response
from starlette.requests import HTTPConnection

from services.gateway.http.bodies import parse, read_body, require_json
from services.gateway.http.problems import ProblemError, storage_errors_as_problems, unavailable
from services.gateway.identity.audit import Action, Audit, operator_of
from services.gateway.identity.identify import OnFailedAuth, no_such_workspace
from services.gateway.identity.workspaces import Workspaces
from services.gateway.quota.redis_scripts import AdmissionUnavailable
from services.gateway.quota.state import AdmissionState
from services.gateway.quota.usage_client import UsageClient, UsageUnavailable
from shared.contracts.contract import is_uuid
from shared.contracts.problems import NOT_FOUND, UNAUTHENTICATED
from shared.contracts.quota import NewPlan, Plan, PlanChange, PlanView, TenantQuota
from shared.observability.logs import get_logger

ADMIN_KEY_HEADER = "X-Admin-Key"
_MAX_BODY_BYTES = 16 * 1024
_CHALLENGE = {"WWW-Authenticate": f'{ADMIN_KEY_HEADER} realm="prompt-upgrader-operators"'}
_PLAN_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": NewPlan.model_json_schema()}}}
}
_RETRY_SECONDS = 2.0

TenantId = Annotated[str, Path(alias="id", description="a workspace's id")]

log = get_logger(__name__)


class AdminRoutes:
    """Without an `admin_key` every route answers 404. `on_refused` is called for each wrong key."""

    def __init__(
        self,
        *,
        admin_key: str | None,
        tenants: Workspaces,
        plans: UsageClient,
        limits: AdmissionState,
        audit: Audit,
        on_refused: OnFailedAuth,
    ) -> None:
        self._digest = _digest(admin_key) if admin_key else None
        self._tenants = tenants
        self._plans = plans
        self._limits = limits
        self._audit = audit
        self._on_refused = on_refused

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/api/admin", tags=["operators"])
        router.add_api_route(
            "/tenants/{id}/plan",
            self.set_plan,
            methods=["PUT"],
            response_model=PlanView,
            summary="Change a tenant's plan",
            openapi_extra=_PLAN_BODY,
        )
        return router

    async def set_plan(self, request: Request, tenant_id: TenantId) -> Response:
        """Sets the plan and its overrides. Every replica applies them when this has answered."""
        await self._require_key(request)
        require_json(request)
        wanted = parse(NewPlan, await read_body(request, _MAX_BODY_BYTES))
        change = PlanChange(plan=wanted.plan, overrides=wanted.overrides)
        with storage_errors_as_problems():
            if not is_uuid(tenant_id) or await self._tenants.find(tenant_id.lower()) is None:
                raise no_such_workspace()
            quota = await self._change(request, tenant_id.lower(), change)
        view = PlanView(tenant_id=quota.tenant_id, plan=quota.plan, overrides=change.overrides, limits=quota.limits)
        return Response(view.to_json(), media_type="application/json")

    async def _change(self, request: Request, tenant_id: str, change: PlanChange) -> TenantQuota:
        details = change.to_document()
        async with self._audit.change(tenant_id, operator_of(request), Action.PLAN_CHANGED, tenant_id, details):
            try:
                quota = await self._plans.set_plan(tenant_id, change)
                await self._limits.set_limits(quota)
            except (UsageUnavailable, AdmissionUnavailable):
                raise unavailable("The change may not count everywhere yet: ask for it again.") from None
        return quota

    async def _require_key(self, request: HTTPConnection) -> None:
        if self._digest is None:
            raise ProblemError(NOT_FOUND, "There is nothing at this address.")
        given = request.headers.getlist(ADMIN_KEY_HEADER)
        # Digests have equal lengths, so the time of the comparison reveals nothing.
        if len(given) != 1 or not hmac.compare_digest(_digest(given[0]), self._digest):
            await self._on_refused(request)
            raise ProblemError(UNAUTHENTICATED, f"Send the operators' key as {ADMIN_KEY_HEADER}.", headers=_CHALLENGE)


class DemoPlan:
    """Component: puts the demo tenant on PRO unless it has a plan; retries until usage and Redis have answered."""

    def __init__(self, usage: UsageClient, state: AdmissionState, tenant_id: str) -> None:
        self._usage = usage
        self._state = state
        self._tenant_id = tenant_id
        self._setting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._setting = asyncio.create_task(self._set_plan(), name="demo-plan")

    async def stop(self, grace_seconds: float) -> None:
        if self._setting:
            self._setting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._setting

    async def _set_plan(self) -> None:
        while True:
            try:
                quota = await self._usage.set_plan(self._tenant_id, PlanChange(plan=Plan.PRO), if_unset=True)
                await self._state.set_limits(quota)
                return
            except (UsageUnavailable, AdmissionUnavailable) as error:
                log.info("demo_plan_not_set_yet", reason=type(error).__name__)
            await asyncio.sleep(_RETRY_SECONDS)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
