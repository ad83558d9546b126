"""Decides about canaries: whether to roll one back (after any run) and whether to promote it (once a day)."""

import math
from datetime import datetime

from services.upgrader.prompts.rollouts import Rollout, TrackTotals, Verdict

FALSE_ALARMS = 0.05
"""Probability of rolling back a canary that is not worse, over a whole rollout and all three e-processes."""
_ALPHA = FALSE_ALARMS / 3
_RUNS_FOR_MARGINS = 100
_TIMES_STABLE = 2.0
_LEAST_SLOWER_MS = 1_000
_SCORES_FOR_MARGIN = 30
_SCORE_MARGIN = 0.1
_Z_95 = 1.959964


def guard(rollout: Rollout, now: datetime) -> Verdict | None:
    """A rollback if the evidence suffices, else None. Can be evaluated after every run."""
    for name, state in (("errors", rollout.errors), ("PII leaks", rollout.leaks), ("injections", rollout.injections)):
        if state.evidence().is_against(_ALPHA):
            value = min(state.evidence().value, 1e12)
            return _verdict(
                "rollback",
                f"more {name} than stable",
                rollout,
                now,
                evidence={"eValue": value, "threshold": 1 / _ALPHA},
            )
    canary, stable = rollout.totals["canary"], rollout.totals["stable"]
    if min(canary.runs, stable.runs) >= _RUNS_FOR_MARGINS:
        slow, usual = canary.latency_ms(0.95) or 0, stable.latency_ms(0.95) or 0
        if slow > _TIMES_STABLE * usual and slow - usual > _LEAST_SLOWER_MS:
            return _verdict("rollback", "p95 latency is more than twice that of stable", rollout, now)
        if canary.cost_nano_usd / canary.runs > _TIMES_STABLE * stable.cost_nano_usd / stable.runs > 0:
            return _verdict("rollback", "an upgrade costs more than twice what it does on stable", rollout, now)
    if _scores_are_lower(canary, stable):
        return _verdict("rollback", "the judge's scores are lower than those of stable", rollout, now)
    return None


def daily(rollout: Rollout, now: datetime) -> Verdict:
    """Whether to promote the canary by one stage, based on the runs of its current stage."""
    canary, stable = rollout.stage_totals["canary"], rollout.stage_totals["stable"]
    if canary.runs < rollout.minimum_runs:
        reason = f"{canary.runs} of {rollout.minimum_runs} runs that are needed in this stage"
        return _verdict("inconclusive", reason, rollout, now)
    rate = canary.errors / canary.runs
    if rate >= rollout.max_error_rate:
        return _verdict(
            "inconclusive", f"error rate {rate:.1%} is not below {rollout.max_error_rate:.1%}", rollout, now
        )
    usual = stable.errors / stable.runs if stable.runs else 0.0
    if stable.runs and wilson_interval(canary.errors, canary.runs)[0] > usual:
        return _verdict("inconclusive", f"error rate {rate:.1%} is worse than {usual:.1%} of stable", rollout, now)
    return _verdict("promote", f"{canary.runs} runs with an error rate of {rate:.1%}", rollout, now)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a rate (Wilson 1927); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    rate, z2 = successes / trials, _Z_95**2
    center = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z_95 * math.sqrt(rate * (1 - rate) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, center - half), min(1.0, center + half)


def _scores_are_lower(canary: TrackTotals, stable: TrackTotals) -> bool:
    """Whether the mean score is lower by the margin, and the 95 % interval of the difference excludes 0."""
    if min(canary.scored, stable.scored) < _SCORES_FOR_MARGIN:
        return False
    difference = stable.score_sum / stable.scored - canary.score_sum / canary.scored
    error = math.sqrt(_variance(canary) / canary.scored + _variance(stable) / stable.scored)
    return difference >= _SCORE_MARGIN and difference - _Z_95 * error > 0


def _variance(totals: TrackTotals) -> float:
    mean = totals.score_sum / totals.scored
    return max(0.0, totals.score_squares / totals.scored - mean**2)


def _verdict(
    decision: str, reason: str, rollout: Rollout, now: datetime, evidence: dict[str, float] | None = None
) -> Verdict:
    numbers: dict[str, float] = dict(evidence or {})
    for track, totals in rollout.totals.items():
        numbers |= {f"{track}Runs": totals.runs, f"{track}Errors": totals.errors}
    return Verdict.model_validate({"decision": decision, "reason": reason, "evidence": numbers, "at": now})
