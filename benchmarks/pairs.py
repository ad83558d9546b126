"""The one harness: two sides take turns, and the ratio is taken within each pair, so that a noisy hour hits both."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median
from typing import Literal

Numbers = Mapping[str, float]
SideName = Literal["a", "b"]
Side = Callable[[], Awaitable[Numbers]]

PAIRS = 5
BOTH: tuple[tuple[str, SideName], ...] = (("A", "a"), ("B", "b"))
"""For texts that say what each side measured."""


@dataclass(frozen=True)
class Row:
    """One line of the results. A goal is the least ratio where more is better, and the greatest where less is."""

    name: str
    unit: str
    sides: str
    goal: float | None = None
    better: Literal["more", "less"] = "more"

    def on(self, broker: str) -> str:
        """The name of this row's result on one broker."""
        return f"{self.name}-{broker}"


@dataclass(frozen=True)
class Pair:
    """What both sides measured, one right after the other."""

    a: Numbers
    b: Numbers


@dataclass(frozen=True)
class Measured:
    """The result of one row. `ratios` holds A/B of each pair; `others_hold` is False when the row asks for more than
    its ratio (a memory limit, say) and did not get it. `absolute` says in words what was measured."""

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
        """Whether the goal is met; None where there is none."""
        if self.row.goal is None:
            return None
        reached = self.ratio >= self.row.goal if self.row.better == "more" else self.ratio <= self.row.goal
        return reached and self.others_hold


async def paired(a: Side, b: Side, *, pairs: int = PAIRS, warm_ups: int = 1) -> list[Pair]:
    """Runs A B A B …, and forgets the first `warm_ups` pairs."""
    done: list[Pair] = []
    for _ in range(warm_ups + pairs):
        first = await a()
        done.append(Pair(first, await b()))
    return done[warm_ups:]


def ratios(pairs: Sequence[Pair], key: str) -> tuple[float, ...]:
    """A/B of one number, for each pair."""
    return tuple(pair.a[key] / pair.b[key] for pair in pairs)


def middle(pairs: Sequence[Pair], side: SideName, key: str) -> float:
    """The median of one number over all runs of a side."""
    return median((pair.a if side == "a" else pair.b)[key] for pair in pairs)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)]
