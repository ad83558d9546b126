"""Puts the demo tenant on its plan, unless somebody has given it one."""

import asyncio
import contextlib

from services.gateway.admission.redis_scripts import AdmissionUnavailable
from services.gateway.admission.state import AdmissionState
from services.gateway.siblings.usage import UsageClient, UsageUnavailable
from shared.contracts.plans import Plan, PlanChange
from shared.observability.logs import get_logger

_AGAIN_SECONDS = 2.0

log = get_logger(__name__)


class DemoPlan:
    """Component: asks in the background until usage and Redis have answered."""

    def __init__(self, usage: UsageClient, state: AdmissionState, tenant_id: str) -> None:
        self._usage = usage
        self._state = state
        self._tenant_id = tenant_id
        self._asking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._asking = asyncio.create_task(self._ask(), name="demo-plan")

    async def stop(self, grace_seconds: float) -> None:
        if self._asking:
            self._asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._asking

    async def _ask(self) -> None:
        while True:
            try:
                quota = await self._usage.set_plan(self._tenant_id, PlanChange(plan=Plan.PRO), if_unset=True)
                await self._state.set_limits(quota)
                return
            except (UsageUnavailable, AdmissionUnavailable) as error:
                log.info("demo_plan_not_set_yet", reason=type(error).__name__)
            await asyncio.sleep(_AGAIN_SECONDS)
