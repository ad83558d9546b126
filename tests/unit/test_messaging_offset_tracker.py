"""OffsetTracker never commits beyond an unfinished record."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.messaging.consume.work import OffsetTracker


def test_nothing_to_commit_before_the_first_record() -> None:
    assert OffsetTracker().committable is None


def test_the_lowest_unfinished_offset_is_committable() -> None:
    tracker = OffsetTracker()
    for offset in (5, 6, 9):
        tracker.begin(offset)
    assert tracker.committable == 5
    tracker.finish(6)
    assert (tracker.committable, tracker.span) == (5, 3)
    tracker.finish(5)
    assert (tracker.committable, tracker.span) == (9, 1)
    tracker.finish(9)
    assert (tracker.committable, tracker.span) == (10, 0)


def test_an_offset_not_above_the_last_one_is_rejected() -> None:
    tracker = OffsetTracker()
    tracker.begin(7)
    with pytest.raises(ValueError):
        tracker.begin(7)


@given(st.sets(st.integers(0, 2000), min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_it_agrees_with_a_simple_model_in_any_order_of_finishing(offsets: set[int], random: object) -> None:
    order = sorted(offsets)
    to_begin, begun, finished = list(order), list[int](), set[int]()
    tracker = OffsetTracker()
    while to_begin or finished != set(order):
        unfinished = [offset for offset in begun if offset not in finished]
        if to_begin and (not unfinished or random.random() < 0.5):  # type: ignore[attr-defined]
            offset = to_begin.pop(0)
            tracker.begin(offset)
            begun.append(offset)
        else:
            offset = random.choice(unfinished)  # type: ignore[attr-defined]
            tracker.finish(offset)
            finished.add(offset)
        unfinished = [offset for offset in begun if offset not in finished]
        assert tracker.committable == (unfinished[0] if unfinished else begun[-1] + 1)
        assert tracker.span == sum(1 for offset in begun if unfinished and offset >= unfinished[0])
        assert len(tracker._finished) <= tracker.span
