"""Computes the amounts that ledger events add to tenant counters and rollups."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from typing import NamedTuple

from services.usage.counting.ledger_event import LedgerEvent
from services.usage.counting.rollups import RollupKind, bucket_of, five_days_with
from shared.contracts.upgrade_tasks import Origin

_COUNTED_STATUSES = frozenset({"upgraded", "cached"})
_ANONYMOUS = "anonymous"

Amounts = dict[str, int]


class CounterKey(NamedTuple):
    """The counters of one tenant in one period (`YYYY-MM`), which quotas limit."""

    tenant_id: str
    period: str


class RollupKey(NamedTuple):
    """One rollup of a tenant: of a whole day (`total`, with an empty key), a component or a user (their id is the key).

    `day` is the first day of the rollup's span; that of `user_month` is the period (`YYYY-MM`).
    """

    tenant_id: str
    day: str
    origin: Origin
    kind: RollupKind
    key: str


@dataclass
class Increments:
    """Amounts to add, by document and field. `a.b` is field `b` of the object `a`."""

    counters: dict[CounterKey, Amounts] = field(default_factory=dict)
    rollups: dict[RollupKey, Amounts] = field(default_factory=dict)

    def add(self, more: "Increments") -> None:
        """Adds the amounts of `more` to these."""
        for counter, amounts in more.counters.items():
            _add(self.counters.setdefault(counter, {}), amounts)
        for rollup, amounts in more.rollups.items():
            _add(self.rollups.setdefault(rollup, {}), amounts)


def increments_of(events: Iterable[LedgerEvent]) -> Increments:
    """The amounts that these events add, each event once.

    The `upgrades` meter counts ends with status upgraded or cached; `tokens` and `embeddings` count operations. Events
    with origin `eval` are added to rollups only, never to counters.
    """
    result = Increments()
    for event in events:
        if event.origin == "client":
            counter = CounterKey(event.tenant_id, event.period)
            _add(result.counters.setdefault(counter, {}), _counter_amounts(event))
        amounts = _rollup_amounts(event)
        with_latency = {**amounts, f"latency.{bucket_of(event.latency_ms)}": 1}
        for kind, day, key in _groups(event):
            rollup = RollupKey(event.tenant_id, day, event.origin, kind, key)
            _add(result.rollups.setdefault(rollup, {}), with_latency if _has_latency(event, kind) else amounts)
    return result


def _counter_amounts(event: LedgerEvent) -> Amounts:
    if event.status is not None:
        return {"upgrades": 1 if event.status in _COUNTED_STATUSES else 0}
    return {
        "tokens": event.tokens_in + event.tokens_out,
        "embeddings": event.embeddings,
        "costNanoUsd": event.cost_nano_usd,
    }


def _rollup_amounts(event: LedgerEvent) -> Amounts:
    if event.status is not None:
        return {"upgrades.total": 1, f"upgrades.{event.status}": 1}
    return {
        "tokensIn": event.tokens_in,
        "tokensOut": event.tokens_out,
        "embeddings": event.embeddings,
        "costNanoUsd": event.cost_nano_usd,
        "operations": 1,
        "cacheHits": 1 if event.cache_hit else 0,
    }


def _groups(event: LedgerEvent) -> list[tuple[RollupKind, str, str]]:
    user = event.user_ref or _ANONYMOUS
    groups: list[tuple[RollupKind, str, str]] = [
        ("total", event.day, ""),
        ("user", event.day, user),
        ("user_five_days", five_days_with(date.fromisoformat(event.day))[0].isoformat(), user),
        ("user_month", event.period, user),
    ]
    if event.component is not None:
        groups.append(("component", event.day, event.component))
    return groups


def _has_latency(event: LedgerEvent, kind: RollupKind) -> bool:
    """Component rollups hold latencies of operations, all others latencies of whole upgrades."""
    return (event.status is None) == (kind == "component")


def _add(amounts: Amounts, more: Amounts) -> None:
    for name, amount in more.items():
        if amount:
            amounts[name] = amounts.get(name, 0) + amount
