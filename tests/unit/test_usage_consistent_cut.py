"""Tests which batches a counter must include, given its own batch list and the batches closed before reading began."""

import pytest

from services.usage.counting.batch_registry import Progress
from services.usage.reconciling.comparison import ConsistentCut, counter_key
from tests.unit.usage_fixtures import operation

BEGAN = Progress(last=20, open_numbers=frozenset({19, 20}))
COUNTER = {"tenantId": "tenant-a", "period": "2026-11", "recentBatches": [18, 20, 29], "batchFloor": 21}


@pytest.mark.parametrize(
    ("number", "uncounted", "contained"),
    [
        (5, False, True),  # closed before
        (5, True, False),  # given up before, and its events have not moved yet
        (18, False, True),
        (19, False, True),  # closed and forgotten by the counter since then
        (19, True, False),  # given up since then
        (20, True, True),  # in the counter, not yet in all others
        (29, False, True),
        (28, False, False),  # closed after the counter was read
        (28, True, False),
    ],
)
def test_which_batches_a_counter_must_include(number: int, uncounted: bool, contained: bool) -> None:
    cut = ConsistentCut(BEGAN, {counter_key(COUNTER): COUNTER}, {})
    event = {**operation("e1").to_document(), "batchId": f"{number:015d}"}
    found = cut.increments_of([event], {number} if uncounted else set())
    assert [sums["tokens"] for sums in found.counters.values()] == ([15] if contained else [])


@pytest.mark.parametrize(("number", "contained"), [(5, True), (19, False), (28, False)])
def test_which_batches_a_missing_counter_lacks(number: int, contained: bool) -> None:
    event = {**operation("e1").to_document(), "batchId": f"{number:015d}"}
    found = ConsistentCut(BEGAN, {}, {}).increments_of([event], set())
    assert bool(found.counters) == contained
