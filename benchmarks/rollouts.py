"""Simulates rollouts of prompt versions: how often, and how soon, the guard rolls a canary back.

Users keep their track, have unequal traffic (Zipf) and unequal error rates (beta-distributed around the track's mean).
The canary's share is 5 %, then 25 %, then 50 %. Only the errors are simulated; the guard's other questions (leaks,
injections, latency, cost, scores) have no data.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import accumulate

from benchmarks.backends import EMBEDDED
from benchmarks.pairs import Measured, Row, percentile
from services.upgrader.prompts.evidence import RUNS_OF_A_USER, Block
from services.upgrader.prompts.rollouts import EvidenceState, Rollout, TrackTotals
from services.upgrader.prompts.verdicts import FALSE_ALARMS, daily, guard
from shared.contracts.prompts import PromptStage

SIMULATIONS = 1_000
_USERS = 20_000
_ZIPF_EXPONENT = 1.0
_CONCENTRATION = 20.0
_SHARES = (0.05, 0.25, 0.50)
_CANARY_RUNS_OF_A_STAGE = 100
_MOST_CANARY_RUNS = 1_000
_MOST_RUNS = 100_000
_DRAWN_AT_ONCE = 2_000
_SOON = 200
_FOUND_SOON = 0.95
_OUTAGE_RATE = 0.9
_OUTAGE_STARTS_BEFORE, _OUTAGE_LASTS = 3_000, (50, 600)
_NOW = datetime(2026, 11, 1, tzinfo=UTC)

_WORLD = (
    f"{SIMULATIONS:,} simulated rollouts of {_USERS:,} sticky users with Zipf traffic and beta-distributed error rates "
    f"(concentration {_CONCENTRATION:g}); the guard is asked after each run; the first {RUNS_OF_A_USER} runs of a user "
    f"count; the share goes up after {_CANARY_RUNS_OF_A_STAGE} canary runs; a rollout ends after "
)
_LONG = f"{_WORLD}{_MOST_CANARY_RUNS:,} canary runs."
_ALARMS = f"A is the share of canaries that were rolled back, B is the limit, {FALSE_ALARMS:.0%}."
SAME_2 = Row("rollouts-same-2", "share", f"Both tracks fail at 2 %. {_ALARMS} {_LONG}", goal=1.0, better="less")
SAME_4 = Row("rollouts-same-4", "share", f"Both tracks fail at 4 %. {_ALARMS} {_LONG}", goal=1.0, better="less")
FAR_WORSE = Row(
    "rollouts-15-against-2",
    "share",
    f"The canary fails at 15 %, stable at 2 %. A is the share that was rolled back within {_SOON} canary runs, B is "
    f"the limit, {_FOUND_SOON:.0%}. {_WORLD}{_SOON} canary runs.",
    goal=1.0,
)
WORSE = Row(
    "rollouts-6-against-2",
    "canary runs",
    "The canary fails at 6 %, stable at 2 %. A is the median of canary runs until the rollback (those that never are "
    f"rolled back count as {_MOST_CANARY_RUNS:,}), B is {_SOON}. {_LONG}",
    better="less",
)
OUTAGE = Row(
    "rollouts-outage",
    "share",
    f"Both tracks fail at 2 %, and at {_OUTAGE_RATE:.0%} during an outage that starts at a random run and lasts "
    f"{_OUTAGE_LASTS[0]} to {_OUTAGE_LASTS[1]} counted runs. {_ALARMS} {_LONG}",
    goal=1.0,
    better="less",
)
TOO_FEW = Row(
    "rollouts-too-few-runs",
    "share",
    "A is the number of canaries that the daily decision promotes, B the number it is asked about: "
    f"{SIMULATIONS:,} stages with none or too few canary runs, with and without errors, with none or many stable runs.",
    goal=0.0,
    better="less",
)
ROWS = (SAME_2, SAME_4, FAR_WORSE, WORSE, OUTAGE, TOO_FEW)


@dataclass(frozen=True)
class World:
    """What the simulated runs are like. `outage`: both tracks fail during one stretch of the counted runs."""

    canary: float
    stable: float
    most_canary_runs: int = _MOST_CANARY_RUNS
    outage: bool = False


async def measure(kind: str, chosen: Sequence[Row]) -> list[Measured]:
    """Simulates the chosen rows on one core. Needs no broker."""
    if kind != EMBEDDED:
        return []
    return [_MEASURES[row.name](row) for row in chosen]


def _alarms(world: World) -> Callable[[Row], Measured]:
    def measured(row: Row) -> Measured:
        began = time.perf_counter()
        found = _delays(world)
        share = len(found) / SIMULATIONS
        absolute = f"A {share:.1%} of {SIMULATIONS:,} rolled back; {time.perf_counter() - began:.0f} s"
        return Measured(row.on(EMBEDDED), row, (share / FALSE_ALARMS,), absolute)

    return measured


def _found_soon(row: Row) -> Measured:
    found = _delays(World(0.15, 0.02, most_canary_runs=_SOON))
    share = len(found) / SIMULATIONS
    absolute = f"A {share:.1%} of {SIMULATIONS:,} within {_SOON} canary runs; {_delay(found)}"
    return Measured(row.on(EMBEDDED), row, (share / _FOUND_SOON,), absolute)


def _found_at_last(row: Row) -> Measured:
    found = _delays(World(0.06, 0.02))
    soon = sum(delay <= _SOON for delay in found) / SIMULATIONS
    absolute = (
        f"A {len(found) / SIMULATIONS:.1%} of {SIMULATIONS:,} within {_MOST_CANARY_RUNS:,} canary runs, {soon:.1%} "
        f"within {_SOON}; {_delay(found)}"
    )
    all_delays = [*found, *[_MOST_CANARY_RUNS] * (SIMULATIONS - len(found))]
    return Measured(row.on(EMBEDDED), row, (percentile(all_delays, 50) / _SOON,), absolute)


def _promoted_on_too_few(row: Row) -> Measured:
    dice = random.Random(5)
    promoted = 0
    for number in range(SIMULATIONS):
        rollout = _rollout()
        runs = 0 if number % 4 == 0 else dice.randrange(rollout.minimum_runs)
        stable_runs = dice.choice((0, 10, 10_000))
        totals = {
            "canary": TrackTotals(runs=runs, errors=dice.choice((0, runs // 20, runs))),
            "stable": TrackTotals(runs=stable_runs, errors=stable_runs // 50),
        }
        verdict = daily(rollout.model_copy(update={"stage_totals": totals}), _NOW)
        promoted += verdict.decision == "promote"
    absolute = f"A {promoted} of {SIMULATIONS:,} promoted"
    return Measured(row.on(EMBEDDED), row, (promoted / SIMULATIONS,), absolute)


_MEASURES: dict[str, Callable[[Row], Measured]] = {
    SAME_2.name: _alarms(World(0.02, 0.02)),
    SAME_4.name: _alarms(World(0.04, 0.04)),
    FAR_WORSE.name: _found_soon,
    WORSE.name: _found_at_last,
    OUTAGE.name: _alarms(World(0.02, 0.02, outage=True)),
    TOO_FEW.name: _promoted_on_too_few,
}


def _delays(world: World) -> list[int]:
    """The canary runs until the rollback, of the simulated rollouts that were rolled back."""
    found = (_rolled_back_after(world, seed) for seed in range(SIMULATIONS))
    return [runs for runs in found if runs is not None]


def _rolled_back_after(world: World, seed: int) -> int | None:
    """After how many canary runs the guard rolls back; None if it never does.

    A run waits for the first one of the other track, since a block without runs of both is no evidence.
    """
    dice = random.Random(seed)
    outage_starts = dice.randrange(_OUTAGE_STARTS_BEFORE)
    outage = range(outage_starts, outage_starts + dice.randint(*_OUTAGE_LASTS)) if world.outage else range(0)
    rollout, state = _rollout(), EvidenceState()
    points: dict[int, float] = {}
    rates: dict[tuple[int, bool], float] = {}
    canary_runs, waiting = 0, [0, 0, 0, 0]
    for number, user in enumerate(_counted_users(dice)):
        share = _SHARES[min(canary_runs // _CANARY_RUNS_OF_A_STAGE, len(_SHARES) - 1)]
        on_canary = points.setdefault(user, dice.random()) < share
        rate = rates.get((user, on_canary))
        if rate is None:
            mean = world.canary if on_canary else world.stable
            rate = dice.betavariate(mean * _CONCENTRATION, (1 - mean) * _CONCENTRATION)
            rates[user, on_canary] = rate
        waiting[0 if on_canary else 2] += 1
        waiting[1 if on_canary else 3] += dice.random() < (_OUTAGE_RATE if number in outage else rate)
        canary_runs += on_canary
        if waiting[0] and waiting[2]:
            state = state.after(Block(*waiting))
            waiting = [0, 0, 0, 0]
            if guard(rollout.model_copy(update={"errors": state}), _NOW) is not None:
                return canary_runs
        if canary_runs >= world.most_canary_runs:
            return None
    return None


def _counted_users(dice: random.Random) -> Iterator[int]:
    """The users of the runs that count, in order."""
    runs_of: dict[int, int] = {}
    for _ in range(_MOST_RUNS // _DRAWN_AT_ONCE):
        for user in dice.choices(range(_USERS), cum_weights=_traffic(), k=_DRAWN_AT_ONCE):
            runs_of[user] = runs_of.get(user, 0) + 1
            if runs_of[user] <= RUNS_OF_A_USER:
                yield user


@cache
def _traffic() -> list[float]:
    return list(accumulate(1 / rank**_ZIPF_EXPONENT for rank in range(1, _USERS + 1)))


def _rollout() -> Rollout:
    return Rollout(prompt_id="p", version=2, stage=PromptStage.CANARY_5, started_at=_NOW, stage_since=_NOW)


def _delay(delays: Sequence[int]) -> str:
    """Describes the canary runs until the rollback."""
    if not delays:
        return "none rolled back"
    p50, p95 = percentile(delays, 50), percentile(delays, 95)
    return f"rolled back after {p50:.0f} canary runs (median), {p95:.0f} (p95)"
