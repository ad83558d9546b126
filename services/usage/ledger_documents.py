"""What the documents of the ledger are called, and what stands in each beside its amounts."""

from collections.abc import Mapping, Sequence
from typing import Any

from services.usage.batch_registry import StoredBatchRegistry
from services.usage.increments import CounterKey, RollupKey
from shared.storage.documents import CollectionSpec, Index

EVENTS = CollectionSpec("usage_events", (Index(("batchId",)),))
VERSION = "version"
"""Of a tenant's counters: raised by each count, so that of two readings the newer one is known."""
COUNTERS = CollectionSpec("tenant_counters")
# The id of a rollup begins with what it is looked up by, which saves an index that every count would have to keep.
ROLLUPS = CollectionSpec("daily_rollups")


def counter_id(key: CounterKey) -> str:
    return f"{key.tenant_id}|{key.period}"


def counter_fields(key: CounterKey) -> dict[str, Any]:
    return {"tenantId": key.tenant_id, "period": key.period}


def rollup_id(key: RollupKey) -> str:
    return f"{key.tenant_id}|{key.kind}|{key.day}|{key.origin}|{key.key}"


def rollup_fields(key: RollupKey) -> dict[str, Any]:
    return {"tenantId": key.tenant_id, "day": key.day, "origin": key.origin, "kind": key.kind, "key": key.key}


async def uncounted_among(
    registry: StoredBatchRegistry, events: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Those of the stored events, read before, whose batch is not closed."""
    batches = {int(event["batchId"]) for event in events}
    waiting = await registry.uncounted_among(batches) if batches else set()
    return [event for event in events if int(event["batchId"]) in waiting]
