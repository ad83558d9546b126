"""A tenant's admission state in Redis: each method is one script, and each script one atomic step."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from services.gateway.quota.admission import (
    Admit,
    Admitted,
    Claim,
    Confirmed,
    HoldChange,
    Installed,
    InstalledHold,
    MeterState,
    QuotaState,
    RateState,
    Settled,
    Verdict,
)
from services.gateway.quota.redis_scripts import AdmissionConnection, Argument
from shared.contracts import redis_keys
from shared.contracts.contract import new_id
from shared.contracts.quota import Limits, Meter, Plan, TenantQuota

_CLAIM_LIFE_MS = 24 * 3600 * 1000
RATE_WINDOW_MS = 60_000
_STATE_LIFE_SECONDS = 70 * 86_400
_REBUILD_LIFE_MS = 600_000
_METERS = (Meter.UPGRADES, Meter.TOKENS, Meter.EMBEDDINGS)


class AdmissionState:
    """Typed calls of the scripts. Each raises AdmissionUnavailable."""

    def __init__(self, connection: AdmissionConnection) -> None:
        self._connection = connection

    async def admit(self, ask: Admit) -> Admitted:
        keys, arguments = admit_call(ask)
        answer = await self._connection.run("admit", keys, *arguments)
        verdict: Verdict = answer[0].decode()
        rate = RateState(int(answer[1]), int(answer[2]))
        due = _texts(answer[3])
        if verdict == "replay":
            claimed_by, _, claimed_body = answer[4].decode().partition("|")
            return Admitted(verdict, rate, due, claimed_by=claimed_by, claimed_body=claimed_body)
        if verdict == "quota_exceeded":
            meter, limit, used, held = (int(value) for value in answer[4:8])
            return Admitted(verdict, rate, due, meter=MeterState(_METERS[meter - 1], limit, used, held))
        return Admitted(verdict, rate, due)

    async def release(
        self, tenant_id: str, period: str, hold_id: str, *, subject: str = "", key_hash: str | None = None
    ) -> None:
        keys = [*_keys(tenant_id, period), *_own_keys(tenant_id, subject, key_hash)]
        await self._connection.run("release", keys, hold_id)

    async def forget_claim(self, tenant_id: str, key_hash: str, upgrade_id: str) -> None:
        """Frees an idempotency key as long as that upgrade has it."""
        await self._connection.run("forget_claim", [redis_keys.admission_claim(tenant_id, key_hash)], upgrade_id)

    async def restore_claim(self, tenant_id: str, key_hash: str, asked_by: str, claim: Claim, life: timedelta) -> None:
        """The key is the claim's again, unless another request than `asked_by` has it."""
        life_ms = max(1, round(life.total_seconds() * 1000))
        keys = [redis_keys.admission_claim(tenant_id, key_hash)]
        value = f"{claim.upgrade_id}|{claim.body_hash}"
        await self._connection.run("restore_claim", keys, asked_by, value, life_ms)

    async def settle(self, tenant_id: str, period: str, ended: Sequence[Settled], due_ms: int) -> None:
        arguments: list[Argument] = [due_ms]
        for one in ended:
            tokens = "" if one.tokens is None else one.tokens
            arguments += [one.hold_id, one.upgrades, tokens, "" if one.embeddings is None else one.embeddings]
        await self._connection.run("settle", _keys(tenant_id, period), *arguments)

    async def confirm(
        self, tenant_id: str, period: str, quota: TenantQuota | None, changes: Sequence[HoldChange]
    ) -> Confirmed:
        """Without a quota only the changes are made."""
        counted: list[Argument] = [-1, 0, 0, 0, 0, "", 0, 0, 0]
        if quota is not None:
            counted = [quota.counters.version, *_base(quota)]
        arguments = [
            argument
            for change in changes
            for argument in (
                change.hold_id, change.what, change.upgrades, change.tokens, change.embeddings, change.due_ms
            )
        ]  # fmt: skip
        answer = await self._connection.run("confirm", _keys(tenant_id, period), *counted, *arguments)
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

    async def install(self, run_id: str, token: str, quota: TenantQuota, holds: Sequence[InstalledHold]) -> Installed:
        tenant_id, period = quota.tenant_id, quota.period
        arguments: list[Argument] = [run_id, token, quota.counters.version, *_base(quota), _STATE_LIFE_SECONDS]
        for hold in holds:
            arguments += [hold.hold_id, hold.size.upgrades, hold.size.tokens, hold.size.embeddings]
            arguments += [int(hold.ended), int(hold.counted), hold.due_ms]
        keys = [*_keys(tenant_id, period), redis_keys.admission_rebuild(tenant_id, period)]
        answer = await self._connection.run("install", keys, *arguments)
        installed: Installed = answer.decode()
        return installed

    async def restore_rate(self, tenant_id: str, subject: str, accepted: Mapping[str, int]) -> None:
        """What was accepted lately, by upgrade id with its time in ms."""
        arguments = [argument for upgrade_id, at in accepted.items() for argument in (at, upgrade_id)]
        await self._connection.run(
            "restore_rate", [redis_keys.admission_rate(tenant_id, subject)], RATE_WINDOW_MS, *arguments
        )

    async def read(self, tenant_id: str, period: str, now_ms: int) -> QuotaState | None:
        """None while the state is cold."""
        answer = await self._connection.run("read", _keys(tenant_id, period), now_ms)
        if answer[0] == b"cold":
            return None
        numbers = [int(value) for value in answer[2:11]]
        meters = tuple(
            MeterState(meter, _limit(numbers[3 + at]), used=numbers[at], held=numbers[6 + at])
            for at, meter in enumerate(_METERS)
        )
        return QuotaState(Plan(answer[11].decode()), meters, int(answer[12]), _texts(answer[1]))

    async def set_limits(self, quota: TenantQuota) -> None:
        """A change of plan, for all replicas at once. A state that is cold learns of it when it is rebuilt."""
        _, _, _, version, plan, *limits = _base(quota)
        keys = [*_keys(quota.tenant_id, quota.period), redis_keys.admission_rebuild(quota.tenant_id, quota.period)]
        await self._connection.run("set_limits", keys, version, plan, *limits)

    async def failure(self, address_hash: str, most: int, now_ms: int = 0) -> tuple[bool, int]:
        """Notes a refused credential: whether it was within the limit, and the ms until that changes.

        `now_ms` as `rate_now_ms` of Admit.
        """
        keys = [redis_keys.failed_authentication(address_hash)]
        allowed, frees_ms = await self._connection.run("failure", keys, now_ms, RATE_WINDOW_MS, most, new_id())
        return bool(allowed), int(frees_ms)


def admit_call(ask: Admit) -> tuple[list[str], list[Argument]]:
    """Keys and arguments of the script, without the run id that comes first."""
    keys = [*_keys(ask.tenant_id, ask.period), *_own_keys(ask.tenant_id, ask.subject, ask.key_hash)]
    size, body_hash = ask.size, ask.body_hash if ask.key_hash else ""
    return keys, [
        ask.now_ms, ask.hold_id, size.upgrades, size.tokens, size.embeddings, ask.due_ms,
        ask.most_accepted, RATE_WINDOW_MS, body_hash, _CLAIM_LIFE_MS, ask.rate_now_ms,
    ]  # fmt: skip


def _keys(tenant_id: str, period: str) -> list[str]:
    return [
        redis_keys.admission_counters(tenant_id, period),
        redis_keys.admission_holds(tenant_id, period),
        redis_keys.admission_due(tenant_id, period),
    ]


def _own_keys(tenant_id: str, subject: str, key_hash: str | None) -> list[str]:
    return [redis_keys.admission_rate(tenant_id, subject), redis_keys.admission_claim(tenant_id, key_hash or "")]


def _base(quota: TenantQuota) -> list[Argument]:
    """Counters, version of the plan, plan, limits (-1: unlimited)."""
    used, limits = quota.counters, quota.limits
    return [used.upgrades, used.tokens, used.embeddings, quota.plan_version, quota.plan.value, *_limits(limits)]


def _limits(limits: Limits) -> list[int]:
    return [-1 if limit is None else limit for limit in (limits.upgrades, limits.tokens, limits.embeddings)]


def _limit(stored: int) -> int | None:
    return None if stored < 0 else stored


def _texts(values: Sequence[Any]) -> tuple[str, ...]:
    return tuple(value.decode() for value in values)
