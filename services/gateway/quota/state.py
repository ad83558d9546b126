"""A tenant's admission state in Redis: one method per Lua script, and each script is one atomic step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from services.gateway.quota.admission import RATE_WINDOW_SECONDS, Claim, MeterState, QuotaState, RateState
from services.gateway.quota.holds import Hold, HoldChange, HoldSettlement
from services.gateway.quota.redis_scripts import AdmissionConnection, Argument
from shared.contracts import redis_keys
from shared.contracts.admission_state import (
    METERS,
    PLAN_FIELD,
    VERSION_FIELD,
    StoredHold,
    counter_field,
    held_field,
    limit_field,
    to_ms,
)
from shared.contracts.contract import new_id
from shared.contracts.quota import Limits, Plan, TenantQuota

RATE_WINDOW_MS = RATE_WINDOW_SECONDS * 1000
_CLAIM_LIFE_MS = 24 * 3600 * 1000
_STATE_LIFE_SECONDS = 70 * 86_400
_REBUILD_LIFE_MS = 600_000
_READ_FIELDS = (
    *(field_of(meter) for field_of in (counter_field, limit_field, held_field) for meter in METERS),
    PLAN_FIELD,
    VERSION_FIELD,
)

Verdict = Literal["admitted", "replay", "cold", "rate_limited", "quota_exceeded"]
Installed = Literal["installed", "warm", "lost"]
Confirmed = Literal["confirmed", "old", "cold"]


@dataclass(frozen=True)
class AdmitAnswer:
    """The answer of the admit script.

    `due` are the ids of holds to compare with their records. `meter` is the one without room, for `quota_exceeded`.
    `claim` is the owner of the idempotency key, for `replay`.
    """

    verdict: Verdict
    rate: RateState
    due: tuple[str, ...] = ()
    meter: MeterState | None = None
    claim: Claim | None = None


class AdmissionState:
    """Typed calls of the scripts. Times are ms since 1970. Every method raises AdmissionUnavailable."""

    def __init__(self, connection: AdmissionConnection) -> None:
        self._connection = connection

    async def admit(self, hold: Hold, *, now_ms: int, most_accepted: int = 0, rate_now_ms: int = 0) -> AdmitAnswer:
        """Takes the hold, a place in the rate and the idempotency key, or nothing.

        At most `most_accepted` are admitted in a window; 0 is unlimited. The rate uses Redis's clock unless
        `rate_now_ms` is given.
        """
        keys, arguments = admit_call(hold, now_ms=now_ms, most_accepted=most_accepted, rate_now_ms=rate_now_ms)
        answer = await self._connection.run("admit", keys, *arguments)
        verdict: Verdict = answer[0].decode()
        rate = RateState(int(answer[1]), int(answer[2]))
        due = _texts(answer[3])
        if verdict == "replay":
            upgrade_id, _, body_hash = answer[4].decode().partition("|")
            return AdmitAnswer(verdict, rate, due, claim=Claim(upgrade_id, body_hash))
        if verdict == "quota_exceeded":
            meter, limit, used, held = (int(value) for value in answer[4:8])
            return AdmitAnswer(verdict, rate, due, meter=MeterState(METERS[meter - 1], limit, used, held))
        return AdmitAnswer(verdict, rate, due)

    async def release(
        self, tenant_id: str, period: str, hold_id: str, *, subject: str = "", key_hash: str | None = None
    ) -> None:
        """Returns everything that admit took."""
        keys = [*_keys(tenant_id, period), *_own_keys(tenant_id, subject, key_hash)]
        await self._connection.run("release", keys, hold_id)

    async def release_claim(self, tenant_id: str, key_hash: str, upgrade_id: str) -> None:
        """Frees an idempotency key, if it still belongs to that upgrade."""
        await self._connection.run("release_claim", [redis_keys.admission_claim(tenant_id, key_hash)], upgrade_id)

    async def restore_claim(
        self, tenant_id: str, key_hash: str, requested_by: str, claim: Claim, life: timedelta
    ) -> None:
        """Gives the key back to `claim`, unless another upgrade than `requested_by` owns it."""
        life_ms = max(1, round(life.total_seconds() * 1000))
        keys = [redis_keys.admission_claim(tenant_id, key_hash)]
        value = f"{claim.upgrade_id}|{claim.body_hash}"
        await self._connection.run("restore_claim", keys, requested_by, value, life_ms)

    async def settle(self, tenant_id: str, period: str, ended: Sequence[HoldSettlement], due_ms: int) -> None:
        """Replaces the sizes of open holds by real usage; they are checked again at `due_ms`."""
        arguments: list[Argument] = [due_ms]
        for one in ended:
            tokens = "" if one.tokens is None else one.tokens
            arguments += [one.hold_id, one.upgrades, tokens, "" if one.embeddings is None else one.embeddings]
        await self._connection.run("settle", _keys(tenant_id, period), *arguments)

    async def confirm(
        self, tenant_id: str, period: str, quota: TenantQuota | None, changes: Sequence[HoldChange]
    ) -> Confirmed:
        """Installs newer counters and changes holds in one step; without a quota it only changes holds.

        Returns "old", and changes nothing, when the state has newer counters than `quota`.
        """
        counters: list[Argument] = [-1, 0, 0, 0, 0, "", 0, 0, 0]
        if quota is not None:
            counters = [quota.counters.version, *_counters_and_plan(quota)]
        arguments = [
            argument
            for change in changes
            for argument in (
                change.hold_id, change.kind, change.upgrades, change.tokens, change.embeddings, change.due_ms
            )
        ]  # fmt: skip
        answer = await self._connection.run("confirm", _keys(tenant_id, period), *counters, *arguments)
        confirmed: Confirmed = answer.decode()
        return confirmed

    async def begin_rebuild(self, tenant_id: str, period: str, token: str) -> tuple[str, str]:
        """The run id of Redis, and the token with which the state may be installed, or `warm`."""
        keys = [*_keys(tenant_id, period), redis_keys.admission_rebuild(tenant_id, period)]
        run_id, agreed = await self._connection.run("begin_rebuild", keys, token, _REBUILD_LIFE_MS)
        return run_id.decode(), agreed.decode()

    async def incarnation_age(self) -> tuple[str, float]:
        """The run id of Redis, and for how many seconds it has been known without being emptied."""
        return await self._connection.incarnation_age()

    async def install(self, run_id: str, token: str, quota: TenantQuota, holds: Sequence[StoredHold]) -> Installed:
        """Installs a rebuilt state. `run_id` and `token` are from `begin_rebuild`; every hold has its `due` time.

        Returns "lost" when Redis was emptied or restarted since then, "warm" when another replica was faster.
        """
        tenant_id, period = quota.tenant_id, quota.period
        arguments: list[Argument] = [run_id, token, quota.counters.version]
        arguments += [*_counters_and_plan(quota), _STATE_LIFE_SECONDS]
        for hold in holds:
            assert hold.due is not None  # noqa: S101 -- only a hold read from Redis can lack it
            arguments += [hold.hold_id, hold.to_text(), to_ms(hold.due)]
        keys = [*_keys(tenant_id, period), redis_keys.admission_rebuild(tenant_id, period)]
        answer = await self._connection.run("install", keys, *arguments)
        installed: Installed = answer.decode()
        return installed

    async def restore_rate(self, tenant_id: str, subject: str, accepted: Mapping[str, int]) -> None:
        """Restores the rate of a user or credential: ids of recently accepted upgrades, with their times."""
        arguments = [argument for upgrade_id, at in accepted.items() for argument in (at, upgrade_id)]
        await self._connection.run(
            "restore_rate", [redis_keys.admission_rate(tenant_id, subject)], RATE_WINDOW_MS, *arguments
        )

    async def read(self, tenant_id: str, period: str, now_ms: int) -> QuotaState | None:
        """None while the state is cold."""
        answer = await self._connection.run("read", _keys(tenant_id, period), now_ms, *_READ_FIELDS)
        if answer[0] == b"cold":
            return None
        fields = {name: value.decode() for name, value in zip(_READ_FIELDS, answer[2:], strict=True)}
        meters = tuple(
            MeterState(
                meter,
                limit=_limit(int(fields[limit_field(meter)])),
                used=int(fields[counter_field(meter)]),
                held=int(fields[held_field(meter)]),
            )
            for meter in METERS
        )
        return QuotaState(Plan(fields[PLAN_FIELD]), meters, int(fields[VERSION_FIELD]), _texts(answer[1]))

    async def set_limits(self, quota: TenantQuota) -> None:
        """Applies a change of plan for all replicas. A cold state gets the new plan when it is rebuilt."""
        _, _, _, plan_version, plan, *limits = _counters_and_plan(quota)
        keys = [*_keys(quota.tenant_id, quota.period), redis_keys.admission_rebuild(quota.tenant_id, quota.period)]
        await self._connection.run("set_limits", keys, plan_version, plan, *limits)

    async def count_failure(self, address_hash: str, most: int, now_ms: int = 0) -> tuple[bool, int]:
        """Counts a failed authentication of an address. Uses Redis's clock unless `now_ms` is given.

        Returns whether it was among the `most` that a window allows, and the ms until the oldest leaves the window.
        """
        keys = [redis_keys.failed_authentication(address_hash)]
        allowed, frees_ms = await self._connection.run("failure", keys, now_ms, RATE_WINDOW_MS, most, new_id())
        return bool(allowed), int(frees_ms)


def admit_call(
    hold: Hold, *, now_ms: int, most_accepted: int, rate_now_ms: int = 0
) -> tuple[list[str], list[Argument]]:
    """Keys and arguments of the admit script, without the run id that comes first."""
    keys = [*_keys(hold.tenant_id, hold.period), *_own_keys(hold.tenant_id, hold.subject, hold.key_hash)]
    size, body_hash = hold.size, (hold.body_hash or "") if hold.key_hash else ""
    return keys, [
        now_ms, hold.hold_id, size.upgrades, size.tokens, size.embeddings, to_ms(hold.expires_at),
        most_accepted, RATE_WINDOW_MS, body_hash, _CLAIM_LIFE_MS, rate_now_ms,
    ]  # fmt: skip


def _keys(tenant_id: str, period: str) -> list[str]:
    return [
        redis_keys.admission_counters(tenant_id, period),
        redis_keys.admission_holds(tenant_id, period),
        redis_keys.admission_due(tenant_id, period),
    ]


def _own_keys(tenant_id: str, subject: str, key_hash: str | None) -> list[str]:
    return [redis_keys.admission_rate(tenant_id, subject), redis_keys.admission_claim(tenant_id, key_hash or "")]


def _counters_and_plan(quota: TenantQuota) -> list[Argument]:
    """The three counters, the version of the plan, the plan, the three limits."""
    used = quota.counters
    plan = [quota.plan_version, quota.plan.value, *_limits(quota.limits)]
    return [used.upgrades, used.tokens, used.embeddings, *plan]


def _limits(limits: Limits) -> list[int]:
    return [-1 if limit is None else limit for limit in (limits.upgrades, limits.tokens, limits.embeddings)]


def _limit(stored: int) -> int | None:
    return None if stored < 0 else stored


def _texts(values: Sequence[Any]) -> tuple[str, ...]:
    return tuple(value.decode() for value in values)
