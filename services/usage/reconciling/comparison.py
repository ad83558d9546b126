"""Compares stored counters and rollups with the amounts that the ledger's events add up to.

Counting goes on while they are read, so every document is from another moment. Each is compared with exactly the events
that it must include, which follows from the batch numbers stored in it: see `ConsistentCut`.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from services.usage.counting.batch_registry import Progress
from services.usage.counting.increments import Amounts, CounterKey, Increments, RollupKey, increments_of
from services.usage.counting.ledger_event import LedgerEvent

# Fields of a counter or rollup document that are not amounts.
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

Document = Mapping[str, Any]
StoredAmounts = Mapping[str, int]
Key = TypeVar("Key", CounterKey, RollupKey)


@dataclass(frozen=True, order=True)
class Difference:
    """A stored number that is not what it should be. `where` is a period, or a day with origin and group."""

    tenant_id: str
    what: str
    where: str
    meter: str
    stored: int
    ledger: int

    @property
    def amount(self) -> int:
        """The stored number minus the expected one."""
        return self.stored - self.ledger

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "amount": self.amount}


@dataclass(frozen=True)
class ConsistentCut:
    """Counter and rollup documents read one after another, and the rule for the events that each must include.

    A cut assigns each document the set of batches applied to it when it was read. It is consistent: every batch that
    was closed at `began`, before the first document was read, is in all of them; a later one is in those that name it.
    """

    began: Progress
    counters: Mapping[CounterKey, Document]
    rollups: Mapping[RollupKey, Document]

    def increments_of(self, events: Sequence[Document], uncounted: AbstractSet[int]) -> Increments:
        """The amounts of these stored events that must be in the documents.

        The events must have been read after the documents. `uncounted` are the batches of theirs that were open or
        given up after that.
        """
        in_all: list[LedgerEvent] = []
        by_batch: dict[int, list[LedgerEvent]] = {}
        for event in events:
            number = int(event["batchId"])
            closed = self.began.had_closed(number) and number not in uncounted
            into = in_all if closed else by_batch.setdefault(number, [])
            into.append(LedgerEvent.from_document(event))
        result = increments_of(in_all)
        for number, of_batch in by_batch.items():
            more, is_uncounted = increments_of(of_batch), number in uncounted
            result.add(
                Increments(
                    _where_included(more.counters, self.counters, number, is_uncounted),
                    _where_included(more.rollups, self.rollups, number, is_uncounted),
                )
            )
        return result


def counter_differences(expected: Increments, stored: Iterable[Document]) -> list[Difference]:
    """The differences between the expected amounts and counter documents, sorted."""
    found = {counter_key(document): amounts_in(document) for document in stored}
    return sorted(
        difference
        for key in expected.counters.keys() | found.keys()
        for difference in _between(
            key.tenant_id, "counter", key.period, found.get(key, {}), expected.counters.get(key, {})
        )
    )


def rollup_differences(expected: Increments, stored: Iterable[Document]) -> list[Difference]:
    """The differences between the expected amounts and rollup documents, sorted."""
    found = {rollup_key(document): amounts_in(document) for document in stored}
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


def amounts_in(document: Document) -> dict[str, int]:
    """The amounts of a counter or rollup document; `a.b` is field `b` of the object `a`."""
    amounts: dict[str, int] = {}
    for name, value in document.items():
        if name in _BOOKKEEPING:
            continue
        if isinstance(value, Mapping):
            amounts.update({f"{name}.{inner}": amount for inner, amount in value.items()})
        else:
            amounts[name] = value
    return amounts


def counter_key(document: Document) -> CounterKey:
    return CounterKey(document["tenantId"], document["period"])


def rollup_key(document: Document) -> RollupKey:
    return RollupKey(document["tenantId"], document["day"], document["origin"], document["kind"], document["key"])


def _between(
    tenant_id: str, what: str, where: str, stored: StoredAmounts, ledger: StoredAmounts
) -> Iterable[Difference]:
    for meter in stored.keys() | ledger.keys():
        if stored.get(meter, 0) != ledger.get(meter, 0):
            yield Difference(tenant_id, what, where, meter, stored.get(meter, 0), ledger.get(meter, 0))


def _where_included(
    amounts: Mapping[Key, Amounts], documents: Mapping[Key, Document], number: int, is_uncounted: bool
) -> dict[Key, Amounts]:
    return {key: sums for key, sums in amounts.items() if _includes(documents.get(key, {}), number, is_uncounted)}


def _includes(document: Document, number: int, is_uncounted: bool) -> bool:
    if number in document.get("recentBatches", ()):
        return True
    # A batch at or below the floor is finished. If it is uncounted all the same, it was given up, and its events have
    # not moved to another batch yet.
    return number <= document.get("batchFloor", 0) and not is_uncounted
