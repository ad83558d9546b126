"""Compares the ledger with its counters and rollups, as of the moments at which they were read."""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from services.usage.counting.batch_registry import Progress
from services.usage.counting.increments import Amounts, CounterKey, Increments, RollupKey, increments_of
from services.usage.counting.ledger_event import LedgerEvent

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

StoredAmounts = Mapping[str, int]


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


def _between(
    tenant_id: str, what: str, where: str, stored: StoredAmounts, ledger: StoredAmounts
) -> Iterable[Difference]:
    for meter in stored.keys() | ledger.keys():
        if stored.get(meter, 0) != ledger.get(meter, 0):
            yield Difference(tenant_id, what, where, meter, stored.get(meter, 0), ledger.get(meter, 0))


Document = Mapping[str, Any]
Key = TypeVar("Key", CounterKey, RollupKey)


@dataclass(frozen=True)
class ConsistentCut:
    """Counter and rollup documents, each as of one moment after `began`. Give it events that were read after them."""

    began: Progress
    counters: Mapping[CounterKey, Document]
    rollups: Mapping[RollupKey, Document]

    def increments_of(self, events: Sequence[Document], uncounted: AbstractSet[int]) -> Increments:
        """What of these stored events has to be in the documents.

        `uncounted` are those of their batches that were open or given up when it was asked after the events were read.
        """
        everywhere: list[LedgerEvent] = []
        by_batch: dict[int, list[LedgerEvent]] = {}
        for event in events:
            number = int(event["batchId"])
            closed = self.began.had_closed(number) and number not in uncounted
            into = everywhere if closed else by_batch.setdefault(number, [])
            into.append(LedgerEvent.from_document(event))
        result = increments_of(everywhere)
        for number, of_batch in by_batch.items():
            more, is_uncounted = increments_of(of_batch), number in uncounted
            result.add(
                Increments(
                    _where_contained(more.counters, self.counters, number, is_uncounted),
                    _where_contained(more.rollups, self.rollups, number, is_uncounted),
                )
            )
        return result


def _where_contained(
    amounts: Mapping[Key, Amounts], documents: Mapping[Key, Document], number: int, is_uncounted: bool
) -> dict[Key, Amounts]:
    return {key: sums for key, sums in amounts.items() if _contains(documents.get(key, {}), number, is_uncounted)}


def _contains(document: Document, number: int, is_uncounted: bool) -> bool:
    if number in document.get("recentBatches", ()):
        return True
    # A batch below the floor that is uncounted was given up: its events wait there for another batch.
    return number <= document.get("batchFloor", 0) and not is_uncounted


def counter_documents(documents: Iterable[Document]) -> dict[CounterKey, Document]:
    """By what they count."""
    return {CounterKey(document["tenantId"], document["period"]): document for document in documents}


def rollup_documents(documents: Iterable[Document]) -> dict[RollupKey, Document]:
    """By what they sum up."""
    return {rollup_key(document): document for document in documents}


def rollup_key(document: Document) -> RollupKey:
    return RollupKey(document["tenantId"], document["day"], document["origin"], document["kind"], document["key"])
