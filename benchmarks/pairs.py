"""The harness of all benchmarks: runs two sides in turns and computes their ratios.

A ratio is computed within each pair of runs, so that other load on the machine affects both of its sides.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median
from typing import Literal

Numbers = Mapping[str, float]
SideName = Literal["a", "b"]
Side = Callable[[], Awaitable[Numbers]]

PAIRS = 5


@dataclass(frozen=True)
class Row:
    """A line of the results.

    `sides` describes what A and B are. `goal` is the smallest acceptable ratio A/B if more is better, else the largest.
    """

    name: str
    unit: str
    sides: str
    goal: float | None = None
    better: Literal["more", "less"] = "more"

    def on(self, kind: str) -> str:
        """Returns the name of this row's result on one kind of broker."""
        return f"{self.name}-{kind}"


@dataclass(frozen=True)
class Pair:
    """What both sides measured, one right after the other."""

    a: Numbers
    b: Numbers


@dataclass(frozen=True)
class Measured:
    """The result of a row.

    `ratios` holds A/B of each pair, `absolute` describes the absolute numbers. `others_hold` is False if the row has
    further conditions (a memory limit, say) and they are not met.
    """

    name: str
    row: Row
    ratios: tuple[float, ...]
    absolute: str
    others_hold: bool = True

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal."""
        if self.row.goal is None:
            return None
        reached = self.ratio >= self.row.goal if self.row.better == "more" else self.ratio <= self.row.goal
        return reached and self.others_hold


async def paired(a: Side, b: Side, *, pairs: int = PAIRS, warm_ups: int = 1) -> list[Pair]:
    """Runs A B A B … and returns all pairs but the first `warm_ups`."""
    done: list[Pair] = []
    for _ in range(warm_ups + pairs):
        first = await a()
        done.append(Pair(first, await b()))
    return done[warm_ups:]


def ratios(pairs: Sequence[Pair], key: str) -> tuple[float, ...]:
    """Returns A/B of one number for each pair."""
    return tuple(pair.a[key] / pair.b[key] for pair in pairs)


def middle(pairs: Sequence[Pair], side: SideName, key: str) -> float:
    """Returns the median of one number over all runs of a side."""
    return median((pair.a if side == "a" else pair.b)[key] for pair in pairs)


def medians(pairs: Sequence[Pair], template: str, separator: str = ", ") -> str:
    """Describes both sides by their medians: `A 12/s, B 10/s` for the template `{per_second:.0f}/s`."""
    a = {key: middle(pairs, "a", key) for key in pairs[0].a}
    b = {key: middle(pairs, "b", key) for key in pairs[0].b}
    return f"A {template.format(**a)}{separator}B {template.format(**b)}"


def percentile(values: Sequence[float], percent: float) -> float:
    """Returns the smallest value that `percent` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)]
