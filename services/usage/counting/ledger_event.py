"""The stored form of a usage or completion event: amounts and references, without prompts or any other text."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from shared.contracts.contract import period_of
from shared.contracts.upgrade_results import UpgradeCompleted
from shared.contracts.upgrade_tasks import Origin
from shared.contracts.usage import UsageRecorded

_PERIOD = re.compile(r"\d{4}-(0[1-9]|1[0-2])")


@dataclass(frozen=True, slots=True)
class LedgerEvent:
    """An operation (`component` is set) or the end of an upgrade (`status` is set). `day` is `YYYY-MM-DD`."""

    event_id: str
    tenant_id: str
    user_ref: str | None
    upgrade_id: str | None
    origin: Origin
    period: str
    day: str
    latency_ms: int
    status: str | None = None
    component: str | None = None
    operation: str | None = None
    model: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    embeddings: int = 0
    cost_nano_usd: int = 0
    cache_hit: bool = False

    def to_document(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "_id": self.event_id,
            "tenantId": self.tenant_id,
            "userRef": self.user_ref,
            "upgradeId": self.upgrade_id,
            "origin": self.origin,
            "period": self.period,
            "day": self.day,
            "latencyMs": self.latency_ms,
        }
        if self.status is not None:
            return {**document, "status": self.status}
        return {
            **document,
            "component": self.component,
            "operation": self.operation,
            "model": self.model,
            "tokensIn": self.tokens_in,
            "tokensOut": self.tokens_out,
            "embeddings": self.embeddings,
            "costNanoUsd": self.cost_nano_usd,
            "cacheHit": self.cache_hit,
        }

    @staticmethod
    def from_document(document: Mapping[str, Any]) -> "LedgerEvent":
        return LedgerEvent(
            event_id=document["_id"],
            tenant_id=document["tenantId"],
            user_ref=document["userRef"],
            upgrade_id=document["upgradeId"],
            origin=document["origin"],
            period=document["period"],
            day=document["day"],
            latency_ms=document["latencyMs"],
            status=document.get("status"),
            component=document.get("component"),
            operation=document.get("operation"),
            model=document.get("model"),
            tokens_in=document.get("tokensIn", 0),
            tokens_out=document.get("tokensOut", 0),
            embeddings=document.get("embeddings", 0),
            cost_nano_usd=document.get("costNanoUsd", 0),
            cache_hit=document.get("cacheHit", False),
        )


def of_usage(event_id: str, usage: UsageRecorded) -> LedgerEvent:
    """The ledger event of one operation."""
    period = _period(usage.period, usage.occurred_at)
    return LedgerEvent(
        event_id=event_id,
        tenant_id=usage.tenant_id,
        user_ref=usage.user_ref,
        upgrade_id=usage.upgrade_id,
        origin=usage.origin,
        period=period,
        day=day_within(period, usage.occurred_at),
        latency_ms=usage.latency_ms,
        component=usage.component,
        operation=usage.operation,
        model=usage.model,
        tokens_in=usage.tokens_in,
        tokens_out=usage.tokens_out,
        embeddings=usage.embeddings,
        cost_nano_usd=usage.cost_nano_usd,
        cache_hit=usage.cache_hit,
    )


def of_completed(event_id: str, completed: UpgradeCompleted) -> LedgerEvent:
    """The ledger event of the end of an upgrade. Its tokens are left out: each operation has an event of its own."""
    period = _period(completed.period, completed.occurred_at)
    return LedgerEvent(
        event_id=event_id,
        tenant_id=completed.tenant_id,
        user_ref=completed.user_ref,
        upgrade_id=completed.upgrade_id,
        origin=completed.origin,
        period=period,
        day=day_within(period, completed.occurred_at),
        latency_ms=max(0, completed.latency_ms),
        status=completed.status.value,
    )


def day_within(period: str, moment: datetime) -> str:
    """The UTC day of a moment, moved to the nearest day of the period.

    An upgrade accepted in the last second of a month counts in that month, and so do the days of its operations: the
    days of a month add up to its counters.
    """
    day = moment.astimezone(UTC).date()
    year, month = int(period[:4]), int(period[5:])
    first = date(year, month, 1)
    if day < first:
        return first.isoformat()
    after = date(year + month // 12, month % 12 + 1, 1) if year < 9999 else date.max
    return (day if day < after else date.fromordinal(after.toordinal() - 1)).isoformat()


def _period(stated: str, occurred_at: datetime) -> str:
    """The stated month, or the month of `occurred_at` when it is malformed: no event is lost because of that."""
    return stated if _PERIOD.fullmatch(stated) and stated > "0001" else period_of(occurred_at)
