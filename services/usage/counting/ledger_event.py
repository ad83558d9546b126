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

# The names of the fields in stored events.
_COMMON_FIELDS = {
    "event_id": "_id",
    "tenant_id": "tenantId",
    "user_ref": "userRef",
    "upgrade_id": "upgradeId",
    "origin": "origin",
    "period": "period",
    "day": "day",
    "latency_ms": "latencyMs",
}
_COMPLETION_FIELDS = {**_COMMON_FIELDS, "status": "status"}
_OPERATION_FIELDS = {
    **_COMMON_FIELDS,
    "component": "component",
    "operation": "operation",
    "model": "model",
    "tokens_in": "tokensIn",
    "tokens_out": "tokensOut",
    "embeddings": "embeddings",
    "cost_nano_usd": "costNanoUsd",
    "cache_hit": "cacheHit",
}


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
        names = _COMPLETION_FIELDS if self.status is not None else _OPERATION_FIELDS
        return {stored: getattr(self, name) for name, stored in names.items()}

    @staticmethod
    def from_document(document: Mapping[str, Any]) -> "LedgerEvent":
        names = _COMPLETION_FIELDS if "status" in document else _OPERATION_FIELDS
        return LedgerEvent(**{name: document[stored] for name, stored in names.items()})


def of_usage(event_id: str, usage: UsageRecorded) -> LedgerEvent:
    """The ledger event of one operation."""
    return LedgerEvent(
        **_booked(event_id, usage),
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
    return LedgerEvent(
        **_booked(event_id, completed), latency_ms=max(0, completed.latency_ms), status=completed.status.value
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


def _booked(event_id: str, data: UsageRecorded | UpgradeCompleted) -> dict[str, Any]:
    """The fields that say whose event it is, and to which period and day it belongs."""
    period = _period(data.period, data.occurred_at)
    return {
        "event_id": event_id,
        "tenant_id": data.tenant_id,
        "user_ref": data.user_ref,
        "upgrade_id": data.upgrade_id,
        "origin": data.origin,
        "period": period,
        "day": day_within(period, data.occurred_at),
    }


def _period(stated: str, occurred_at: datetime) -> str:
    """The stated month, or the month of `occurred_at` when it is malformed: no event is lost because of that."""
    return stated if _PERIOD.fullmatch(stated) and stated > "0001" else period_of(occurred_at)
