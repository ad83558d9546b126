"""Compares the ledger with the counters and rollups made from it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from services.usage.increments import CounterKey, Increments, RollupKey

_BOOKKEEPING = frozenset(
    {
        "_id",
        "tenantId",
        "period",
        "day",
        "origin",
        "kind",
        "key",
        "version",
        "recentBatches",
        "batchFloor",
        "sealedThrough",
    }
)

Amounts = Mapping[str, int]


@dataclass(frozen=True, order=True)
class Difference:
    """`amount` is what is stored less what the ledger says; `where` is a period, or a day with origin and group."""

    tenant_id: str
    what: str
    where: str
    meter: str
    stored: int
    ledger: int

    @property
    def amount(self) -> int:
        return self.stored - self.ledger

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "amount": self.amount}


def counter_differences(expected: Increments, stored: Iterable[Mapping[str, Any]]) -> list[Difference]:
    """Between the ledger's sums and counter documents, in a stable order."""
    found = {CounterKey(doc["tenantId"], doc["period"]): amounts_in(doc) for doc in stored}
    return sorted(
        difference
        for key in expected.counters.keys() | found.keys()
        for difference in _between(
            key.tenant_id, "counter", key.period, found.get(key, {}), expected.counters.get(key, {})
        )
    )


def rollup_differences(expected: Increments, stored: Iterable[Mapping[str, Any]]) -> list[Difference]:
    """Between the ledger's sums and rollup documents, in a stable order."""
    found = {
        RollupKey(doc["tenantId"], doc["day"], doc["origin"], doc["kind"], doc["key"]): amounts_in(doc)
        for doc in stored
    }
    return sorted(
        difference
        for key in expected.rollups.keys() | found.keys()
        for difference in _between(
            key.tenant_id,
            "rollup",
            " ".join(part for part in (key.day, key.origin, key.kind, key.key) if part),
            found.get(key, {}),
            expected.rollups.get(key, {}),
        )
    )


def amounts_in(document: Mapping[str, Any]) -> dict[str, int]:
    """The amounts of a counter or rollup document by dotted field."""
    amounts: dict[str, int] = {}
    for name, value in document.items():
        if name in _BOOKKEEPING:
            continue
        if isinstance(value, Mapping):
            amounts.update({f"{name}.{inner}": amount for inner, amount in value.items()})
        else:
            amounts[name] = value
    return amounts


def _between(tenant_id: str, what: str, where: str, stored: Amounts, ledger: Amounts) -> Iterable[Difference]:
    for meter in stored.keys() | ledger.keys():
        if stored.get(meter, 0) != ledger.get(meter, 0):
            yield Difference(tenant_id, what, where, meter, stored.get(meter, 0), ledger.get(meter, 0))
