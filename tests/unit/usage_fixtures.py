"""Builds ledger events for tests of the usage service."""

import random
from typing import Any

from services.usage.counting.ledger_event import LedgerEvent

TENANTS = ("tenant-a", "tenant-b")
STATUSES = ("upgraded", "cached", "original", "failed")
COMPONENTS = ("summarizer", "rag", "upgrader")


def operation(event_id: str, **changes: Any) -> LedgerEvent:
    """A model call of tenant-a: 10 tokens in, 5 out, 7 nano-dollars."""
    fields: dict[str, Any] = {
        "event_id": event_id,
        "tenant_id": "tenant-a",
        "user_ref": "u_1",
        "upgrade_id": "upgrade-1",
        "origin": "client",
        "period": "2026-11",
        "day": "2026-11-23",
        "latency_ms": 100,
        "component": "upgrader",
        "operation": "rewrite",
        "tokens_in": 10,
        "tokens_out": 5,
        "cost_nano_usd": 7,
    }
    return LedgerEvent(**{**fields, **changes})


def ending(event_id: str, status: str = "upgraded", **changes: Any) -> LedgerEvent:
    """The end of an upgrade of tenant-a."""
    fields: dict[str, Any] = {
        "event_id": event_id,
        "tenant_id": "tenant-a",
        "user_ref": "u_1",
        "upgrade_id": "upgrade-1",
        "origin": "client",
        "period": "2026-11",
        "day": "2026-11-23",
        "latency_ms": 1500,
        "status": status,
    }
    return LedgerEvent(**{**fields, **changes})


def mixed_events(count: int, seed: int = 1) -> list[LedgerEvent]:
    """Operations and ends of several tenants, users, months and origins; the same for the same seed."""
    chance = random.Random(seed)
    return [_mixed(chance, f"event-{seed}-{number}") for number in range(count)]


def _mixed(chance: random.Random, event_id: str) -> LedgerEvent:
    period = chance.choice(("2026-10", "2026-11"))
    common: dict[str, Any] = {
        "tenant_id": chance.choice(TENANTS),
        "user_ref": chance.choice(("u_1", "u_2", None)),
        "origin": chance.choice(("client", "client", "client", "eval")),
        "period": period,
        "day": f"{period}-{chance.randint(1, 28):02d}",
        "latency_ms": chance.randint(0, 60_000),
    }
    if chance.random() < 0.3:
        return ending(event_id, chance.choice(STATUSES), **common)
    return operation(
        event_id,
        component=chance.choice(COMPONENTS),
        tokens_in=chance.randint(0, 5000),
        tokens_out=chance.randint(0, 900),
        embeddings=chance.choice((0, 0, 1, 3)),
        cost_nano_usd=chance.randint(0, 10**9),
        cache_hit=chance.random() < 0.3,
        **common,
    )
