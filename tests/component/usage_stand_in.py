"""A stand-in for the usage service: plans, and counters computed from the results of the test's upgrader."""

from collections.abc import Callable, Iterable, Sequence

from fastapi import FastAPI, Request
from fastapi.responses import Response

from services.gateway.quota.held_work import spent_by
from shared.contracts.contract import now_utc, period_of
from shared.contracts.internal_http import EventIds, TenantCounters
from shared.contracts.quota import PLAN_LIMITS, Meter, Plan, PlanChange, TenantQuota, TenantStanding
from shared.contracts.upgrade_results import UpgradeResult


class UsageStandIn:
    """While `counting`, each read first counts all ended upgrades. Tests may change `plans`."""

    def __init__(self, results: Callable[[], Iterable[UpgradeResult]]) -> None:
        self._results = results
        self.counting = True
        self.out = False
        self.plans: dict[str, PlanChange] = {}
        self.plan_versions: dict[str, int] = {}
        self.counted: set[str] = set()
        self._counted_at: dict[str, int] = {}
        self.counters: dict[tuple[str, str], TenantCounters] = {}

    def set_plan(self, tenant_id: str, plan: Plan, **overrides: int | None) -> None:
        limits = {Meter(meter): limit for meter, limit in overrides.items()}
        self.plans[tenant_id] = PlanChange(plan=plan, overrides=limits)
        self.plan_versions[tenant_id] = self.plan_versions.get(tenant_id, 0) + 1

    def count(self) -> None:
        """Counts ended upgrades that are not counted."""
        for result in list(self._results()):
            key = (result.tenant_id, result.period)
            for spent in spent_by(result):
                if spent.event_id in self.counted:
                    continue
                self.counted.add(spent.event_id)
                had = self.counters.get(key) or TenantCounters(tenant_id=key[0], period=key[1])
                self._counted_at[spent.event_id] = had.version + 1
                self.counters[key] = had.model_copy(
                    update={
                        "upgrades": had.upgrades + spent.upgrades,
                        "tokens": had.tokens + spent.tokens,
                        "embeddings": had.embeddings + spent.embeddings,
                        "version": had.version + 1,
                    }
                )

    def standing(self, tenant_id: str, period: str, event_ids: Sequence[str], as_of: int | None) -> TenantStanding:
        if self.counting:
            self.count()
        quota = self.quota(tenant_id, period)
        version = quota.counters.version if as_of is None else as_of
        missing = [id_ for id_ in event_ids if id_ not in self.counted or self._counted_at.get(id_, 0) > version]
        return TenantStanding(quota=quota, as_of=version, missing=missing)

    def quota(self, tenant_id: str, period: str) -> TenantQuota:
        change = self.plans.get(tenant_id, PlanChange(plan=Plan.FREE))
        return TenantQuota(
            tenant_id=tenant_id,
            period=period,
            plan=change.plan,
            plan_version=self.plan_versions.get(tenant_id, 0),
            limits=PLAN_LIMITS[change.plan].with_overrides(change.overrides),
            counters=self.counters.get((tenant_id, period), TenantCounters(tenant_id=tenant_id, period=period)),
        )

    def add_routes(self, app: FastAPI) -> None:
        @app.post("/internal/tenants/{tenant_id}/standing")
        async def standing(tenant_id: str, period: str, request: Request, asOf: int | None = None) -> Response:
            if self.out:
                return Response(status_code=503)
            ids = EventIds.model_validate_json(await request.body()).event_ids
            body = self.standing(tenant_id, period, ids, asOf)
            return Response(body.to_json(), media_type="application/json")

        @app.get("/internal/tenants/{tenant_id}/quota")
        async def quota(tenant_id: str, period: str) -> Response:
            if self.out:
                return Response(status_code=503)
            if self.counting:
                self.count()
            return Response(self.quota(tenant_id, period).to_json(), media_type="application/json")

        @app.put("/internal/tenants/{tenant_id}/plan")
        async def set_plan(tenant_id: str, request: Request, ifUnset: bool = False) -> Response:
            if self.out:
                return Response(status_code=503)
            change = PlanChange.model_validate_json(await request.body())
            if not (ifUnset and tenant_id in self.plans):
                self.set_plan(tenant_id, change.plan, **{m.value: limit for m, limit in change.overrides.items()})
            quota = self.quota(tenant_id, period_of(now_utc()))
            return Response(quota.to_json(), media_type="application/json")
