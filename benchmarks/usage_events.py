"""Sample ledger events: three operations and an end for each upgrade."""

import random
from functools import partial

from services.usage.counting.ledger_event import LedgerEvent
from shared.contracts.contract import new_id

TENANTS = 10
USERS = 100
EVENTS_OF_AN_UPGRADE = 4
_COMPONENTS = ("summarizer", "rag", "upgrader")
_STATUSES = ("upgraded",) * 7 + ("cached", "original", "failed")


def upgrade(chance: random.Random, tenant_id: str, user_ref: str, day: str) -> list[LedgerEvent]:
    """Returns the events of one upgrade on a day (`YYYY-MM-DD`)."""
    event = partial(
        LedgerEvent,
        tenant_id=tenant_id,
        user_ref=user_ref,
        upgrade_id=new_id(),
        origin="client",
        period=day[:7],
        day=day,
    )
    operations = [
        event(
            event_id=new_id(),
            latency_ms=int(chance.lognormvariate(6, 1)),
            component=component,
            operation="work",
            model="offline-1",
            tokens_in=chance.randint(50, 2000),
            tokens_out=chance.randint(10, 500),
            embeddings=1 if component == "rag" else 0,
            cost_nano_usd=chance.randint(0, 10**6),
            cache_hit=chance.random() < 0.2,
        )
        for component in _COMPONENTS
    ]
    end = event(
        event_id=new_id(),
        latency_ms=int(chance.lognormvariate(7, 1)),
        status=chance.choice(_STATUSES),
    )
    return [*operations, end]


def batches(count: int, size: int, seed: int, run: int) -> list[list[LedgerEvent]]:
    """Returns batches of events of ten tenants with a hundred users each.

    A tenth of each batch repeats events of the previous batch; all others have new ids. `seed` and `run` determine
    everything but the ids.
    """
    chance = random.Random(seed + run)
    made: list[list[LedgerEvent]] = []
    for _ in range(count):
        again = chance.sample(made[-1], size // 10) if made else []
        fresh: list[LedgerEvent] = []
        while len(fresh) < size - len(again):
            tenant, user = chance.randrange(TENANTS), chance.randrange(USERS)
            fresh += upgrade(chance, f"tenant-{tenant}", f"u_{user:032d}", "2026-11-23")
        made.append([*fresh[: size - len(again)], *again])
    return made
