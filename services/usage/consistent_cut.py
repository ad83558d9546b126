"""What counters and rollups have to contain as of the moments at which they were read, while more is being counted.

A document is raised by whole batches and says by which: those in its `recentBatches`, and every batch up to its
`batchFloor` that was not given up (`batch_window.py` shows why). So each can be compared with exactly the events that
it contains, and nothing has to hold still. A document's word is not enough, since it may be an old copy of itself:
what was closed before the first document was read has to be in all of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, TypeVar

from services.usage.batch_registry import Progress
from services.usage.increments import Amounts, CounterKey, Increments, RollupKey, increments_of
from services.usage.ledger_event import LedgerEvent

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
