"""The gateway's admission on a real Valkey and store, with a clock and a usage service that the test controls."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

from redis.asyncio import Redis

from deploy.local.servers import ServerProcess, start_valkey
from services.gateway.quota.document_holds import DOCUMENT_HOLDS, DocumentHolds, DocumentWork
from services.gateway.quota.due_holds import DueHolds
from services.gateway.quota.held_work import EndedUpgrade, UnfinishedWork
from services.gateway.quota.holds import Hold, HoldSize
from services.gateway.quota.quota_admissions import QuotaAdmissions
from services.gateway.quota.rebuild import Rebuild
from services.gateway.quota.redis_scripts import AdmissionConnection
from services.gateway.quota.settlement import Settlement
from services.gateway.quota.state import AdmissionState
from services.gateway.quota.usage_client import UsageUnavailable
from services.gateway.upgrades.accepted_record import AcceptedRecord, RecordedHold, StageShare
from services.gateway.upgrades.accepted_store import ACCEPTED, AcceptedStore, AcceptedWork
from shared.contracts.contract import new_id, period_of
from shared.contracts.quota import Plan, TenantQuota, TenantStanding
from shared.contracts.upgrade_results import UpgradeError, UpgradeResult, UpgradeStatus
from shared.contracts.upgrade_tasks import ComponentUsage, RewriteTask, Stage
from shared.storage.sqlite import SqliteDatabase
from tests.component.usage_stand_in import UsageStandIn

TENANT = new_id()
SIZE = HoldSize(1, 1000, 4)


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 20, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, **by: float) -> None:
        self.now += timedelta(**by)


class LocalUsage:
    """`Usage` on the stand-in, without HTTP."""

    def __init__(self) -> None:
        self.results: dict[str, UpgradeResult] = {}
        self.stand_in = UsageStandIn(lambda: self.results.values())

    async def quota(self, tenant_id: str, period: str) -> TenantQuota:
        if self.stand_in.out:
            raise UsageUnavailable("out")
        if self.stand_in.counting:
            self.stand_in.count()
        return self.stand_in.quota(tenant_id, period)

    async def standing(
        self, tenant_id: str, period: str, event_ids: Sequence[str], as_of: int | None = None
    ) -> TenantStanding:
        if self.stand_in.out:
            raise UsageUnavailable("out")
        return self.stand_in.standing(tenant_id, period, event_ids, as_of)


SECONDS_BETWEEN_CHECKS = 0.2


class AdmissionParts:
    """The admission of one replica with its Redis, store and usage stand-in."""

    def __init__(self, valkey: ServerProcess, database: SqliteDatabase) -> None:
        self.valkey = valkey
        self.clock = Clock()
        self.usage = LocalUsage()
        self.redis = Redis.from_url(valkey.url)
        self.connection = AdmissionConnection(valkey.url)
        self.state = AdmissionState(self.connection)
        self.store = AcceptedStore(database.collection(ACCEPTED))
        self.held_documents = database.collection(DOCUMENT_HOLDS)
        self.work = UnfinishedWork(AcceptedWork(self.store), DocumentWork(self.held_documents))
        self.settlement = Settlement(
            self.state, self.work, self.usage, seconds_between_checks=SECONDS_BETWEEN_CHECKS, clock=self.clock
        )
        self.admissions = QuotaAdmissions(
            self.state,
            Rebuild(self.state, self.work, self.usage, AcceptedWork(self.store), known_for_seconds=0, clock=self.clock),
            self.settlement,
            accepted_per_minute=0,
            clock=self.clock,
        )
        self.documents = DocumentHolds(self.held_documents, self.admissions, self.clock)
        self.due = DueHolds(self.redis, self.settlement, clock=lambda: self.clock.now.timestamp())

    @property
    def period(self) -> str:
        return period_of(self.clock.now)

    async def shared_clock(self) -> datetime:
        return self.clock.now

    def limit(self, **overrides: int | None) -> None:
        self.usage.stand_in.set_plan(TENANT, Plan.ENTERPRISE, **overrides)

    async def set_limits(self, **overrides: int | None) -> None:
        """Like `limit`, and also updates an installed state."""
        self.limit(**overrides)
        await self.state.set_limits(self.usage.stand_in.quota(TENANT, self.period))

    def hold(self, size: HoldSize = SIZE, **changes: Any) -> Hold:
        fields: dict[str, Any] = {
            "tenant_id": TENANT, "hold_id": new_id(), "period": self.period, "size": size,
            "expires_at": self.clock.now + timedelta(seconds=70), "subject": "c",
        }  # fmt: skip
        return Hold(**(fields | changes))

    async def accept(
        self,
        size: HoldSize = SIZE,
        stages: Sequence[Stage] = (Stage.UPGRADER,),
        shares: Mapping[Stage, tuple[int, int]] | None = None,
    ) -> Hold:
        """Admits and records one upgrade. `shares` are tokens and embeddings of its stages."""
        hold = self.hold(size)
        await self.admissions.admit(hold)
        await self.store.insert(self.record(hold, stages, shares or {}))
        return hold

    def record(
        self,
        hold: Hold,
        stages: Sequence[Stage] = (Stage.UPGRADER,),
        shares: Mapping[Stage, tuple[int, int]] = MappingProxyType({}),
    ) -> AcceptedRecord:
        now = self.clock.now
        task = RewriteTask(
            upgrade_id=hold.hold_id, tenant_id=TENANT, period=hold.period, created_at=now,
            deadline=now + timedelta(seconds=60), user_prompt="p", itinerary=list(stages),
        )  # fmt: skip
        return AcceptedRecord(
            upgrade_id=hold.hold_id,
            tenant_id=TENANT,
            credential_id="c",
            user_ref=None,
            key_hash=None,
            body_hash=None,
            period=hold.period,
            created_at=now,
            deadline=task.deadline,
            task=task.model_dump_json(by_alias=True),
            sealed_pii=None,
            traceparent=None,
            hold=RecordedHold(
                upgrades=hold.size.upgrades, tokens=hold.size.tokens, embeddings=hold.size.embeddings,
                expires_at=hold.expires_at,
                stages={stage: StageShare(tokens=share[0], embeddings=share[1]) for stage, share in shares.items()},
            ),
            open_since=now,
        )  # fmt: skip

    async def end(self, hold: Hold, *, settle: bool = True, error: str | None = None, tokens: int = 30) -> None:
        """Ends the upgrade; from now on usage may count it."""
        status = UpgradeStatus.UPGRADED if error is None else UpgradeStatus.ORIGINAL
        result = UpgradeResult(
            upgrade_id=hold.hold_id,
            tenant_id=TENANT,
            status=status,
            user_prompt="p",
            upgraded_prompt="q",
            usage=[ComponentUsage(component="upgrader", operation="rewrite", tokens_in=tokens)] if tokens else [],
            error=UpgradeError(code=error, detail="") if error else None,
            period=hold.period,
            created_at=self.clock.now,
            completed_at=self.clock.now,
            latency_ms=1,
        )
        self.usage.results[hold.hold_id] = result
        ended = EndedUpgrade.of(result)
        await self.store.mark_ended([ended])
        if settle:
            await self.admissions.settle([ended])

    async def meter(self, name: str, period: str | None = None) -> tuple[int, int]:
        """Returns `used` and `held` of one meter."""
        state = await self.state.read(TENANT, period or self.period, 0)
        assert state is not None
        meter = next(meter for meter in state.meters if meter.meter.value == name)
        return meter.used, meter.held


@contextlib.asynccontextmanager
async def admission_parts(folder: Path) -> AsyncIterator[AdmissionParts]:
    database = SqliteDatabase(folder / "gateway.sqlite3")
    async with await start_valkey() as valkey:
        parts = AdmissionParts(valkey, database)
        await database.start()
        await parts.connection.start()
        try:
            yield parts
        finally:
            await parts.admissions.stop(2)
            await parts.connection.stop(1)
            await parts.redis.aclose()
            await database.stop(1)
            await asyncio.sleep(0)
