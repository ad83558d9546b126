"""The benchmark harness: order of runs, ratios, goals and reports."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.pairs import Measured, Pair, Row, middle, paired, percentile, ratios

MORE = Row("speed", "messages/s", "A is ours; B is theirs.", goal=0.5)
LESS = Row("wait", "ms", "A is ours; B is theirs.", goal=1.5, better="less")


async def test_sides_take_turns_and_warm_ups_are_dropped() -> None:
    order: list[str] = []

    async def a() -> Mapping[str, float]:
        order.append("a")
        return {"n": float(len(order))}

    async def b() -> Mapping[str, float]:
        order.append("b")
        return {"n": float(len(order))}

    pairs = await paired(a, b, pairs=2, warm_ups=1)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert pairs == [Pair({"n": 3.0}, {"n": 4.0}), Pair({"n": 5.0}, {"n": 6.0})]


def test_the_ratio_is_the_median_of_the_ratios_within_pairs() -> None:
    # The second pair ran in a slow minute, which affects its numbers but not its ratio.
    pairs = [Pair({"n": 50.0}, {"n": 100.0}), Pair({"n": 6.0}, {"n": 10.0}), Pair({"n": 70.0}, {"n": 100.0})]
    assert ratios(pairs, "n") == (0.5, 0.6, 0.7)
    assert Measured("speed-embedded", MORE, ratios(pairs, "n"), "").ratio == 0.6
    assert (middle(pairs, "a", "n"), middle(pairs, "b", "n")) == (50.0, 100.0)


@pytest.mark.parametrize(
    ("row", "ratio", "others_hold", "met"),
    [
        (MORE, 0.5, True, True),
        (MORE, 0.49, True, False),
        (MORE, 0.9, False, False),
        (LESS, 1.5, True, True),
        (LESS, 1.51, True, False),
        (Row("count", "requests/s", ""), 0.1, True, None),
    ],
)
def test_a_goal_is_a_minimum_or_a_maximum(row: Row, ratio: float, others_hold: bool, met: bool | None) -> None:
    assert Measured(row.on("kafka"), row, (ratio,), "", others_hold).met is met


def test_percentiles_are_nearest_ranks() -> None:
    values = [float(number) for number in range(1, 101)]
    assert (percentile(values, 50), percentile(values, 99), percentile([7.0], 99)) == (50.0, 99.0, 7.0)


def test_a_partial_run_replaces_its_own_lines_only(tmp_path: Path) -> None:
    rows = (MORE, LESS)
    first = [Measured("wait-kafka", LESS, (1.0, 2.0, 3.0), "A 1 ms"), Measured("speed-kafka", MORE, (0.6,), "old")]
    report.write(first, rows, tmp_path)
    report.write([Measured("speed-kafka", MORE, (0.4,), "new")], rows, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == [
        {"name": "speed-kafka", "ratio": 0.4, "goal": 0.5, "met": False, "unit": "messages/s", "runs": [0.4]},
        {"name": "wait-kafka", "ratio": 2.0, "goal": 1.5, "met": False, "unit": "ms", "runs": [1.0, 2.0, 3.0]},
    ]
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| speed-kafka | 0.400 | 0.400 to 0.400 | >= 0.5 | **no** | new |" in text
    assert "| wait-kafka | 2.000 | 1.000 to 3.000 | <= 1.5 | **no** | A 1 ms |" in text
    assert "old" not in text
