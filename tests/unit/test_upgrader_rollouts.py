"""The steps of a rollout and the verdicts that take them."""

from datetime import UTC, datetime, timedelta

import pytest

from services.upgrader.prompts.evidence import Block
from services.upgrader.prompts.rollouts import (
    EvidenceState,
    PromptLine,
    PromptRef,
    Rollout,
    RolloutRefused,
    TrackTotals,
    latency_bucket,
    promote,
    roll_back,
    start_rollout,
)
from services.upgrader.prompts.verdicts import daily, guard, wilson_interval
from shared.contracts.prompts import PromptStage, PromptType

NOW = datetime(2026, 12, 1, tzinfo=UTC)
V1, V2, V3 = (PromptRef(prompt_id=f"p{number}", version=number) for number in (1, 2, 3))
LINE = PromptLine(tenant_id="t", name="upgrader", type=PromptType.UPGRADER, production=V1)


def started(line: PromptLine = LINE, version: PromptRef = V2) -> PromptLine:
    return start_rollout(line, version, minimum_runs=50, max_error_rate=0.05, gates=[], by="ann", now=NOW)


def in_production(line: PromptLine = LINE, version: PromptRef = V2) -> PromptLine:
    line = started(line, version)
    for _ in range(3):
        line = promote(line, "r", "job", NOW)
    return line


def with_totals(canary: TrackTotals, stable: TrackTotals) -> Rollout:
    rollout = started().rollout
    assert rollout is not None
    totals = {"canary": canary, "stable": stable}
    return rollout.model_copy(update={"totals": totals, "stage_totals": totals})


def test_a_version_goes_through_all_stages() -> None:
    line, seen = started(), []
    while line.rollout is not None:
        seen.append(line.rollout.stage)
        line = promote(line, "good", "job", NOW + timedelta(days=len(seen)))
    assert seen == [PromptStage.CANARY_5, PromptStage.CANARY_25, PromptStage.CANARY_50]
    assert line.production == V2
    assert [line.stage_of(v.prompt_id) for v in (V1, V2, V3)] == ["RETIRED", "PRODUCTION", "DEVELOPMENT"]
    assert [entry.stage for entry in line.history] == [*seen, PromptStage.PRODUCTION]


def test_one_rollout_at_a_time() -> None:
    with pytest.raises(RolloutRefused, match="one rollout at a time"):
        started(started(), V3)
    with pytest.raises(RolloutRefused, match="in production already"):
        started(LINE, V1)
    with pytest.raises(RolloutRefused, match="on its way"):
        promote(LINE, "r", "job", NOW)


def test_each_stage_counts_its_own_runs() -> None:
    line = started()
    assert line.rollout is not None
    counted = line.rollout.model_copy(
        update={"stage_totals": {"canary": TrackTotals(runs=60), "stable": TrackTotals()}}
    )
    promoted = promote(line.model_copy(update={"rollout": counted}), "r", "job", NOW).rollout
    assert promoted is not None
    assert promoted.stage_totals["canary"].runs == 0


def test_a_canary_is_taken_back() -> None:
    line = roll_back(started(), "p2", "worse", "guard", NOW)
    assert (line.rollout, line.production, line.stage_of("p2")) == (None, V1, PromptStage.ROLLED_BACK)
    assert started(line).stage_of("p2") is PromptStage.CANARY_5


def test_production_goes_back_to_the_version_before() -> None:
    line = roll_back(in_production(), "p2", "worse", "ann", NOW)
    assert (line.production, line.previous) == (V1, [])
    line = roll_back(line, "p1", "worse too", "ann", NOW)
    assert line.production is None  # the platform's version serves the tenant again


def test_what_cannot_be_rolled_back() -> None:
    with pytest.raises(RolloutRefused, match="neither"):
        roll_back(LINE, "p2", "r", "ann", NOW)
    platform = LINE.model_copy(update={"tenant_id": None})
    with pytest.raises(RolloutRefused, match="no version before"):
        roll_back(platform, "p1", "r", "ann", NOW)


def test_a_production_rollback_ends_a_rollout_beside_it() -> None:
    line = started(in_production(), V3)
    assert roll_back(line, "p2", "worse", "ann", NOW).rollout is None


@pytest.mark.parametrize(
    ("canary", "stable", "decision", "part"),
    [
        (TrackTotals(), TrackTotals(), "inconclusive", "0 of 50 runs"),
        (TrackTotals(runs=49), TrackTotals(runs=900), "inconclusive", "49 of 50 runs"),
        (TrackTotals(runs=50), TrackTotals(), "promote", "50 runs"),
        (TrackTotals(runs=100, errors=4), TrackTotals(runs=900, errors=36), "promote", "4.0%"),
        (TrackTotals(runs=100, errors=5), TrackTotals(runs=900, errors=45), "inconclusive", "not below 5.0%"),
        (TrackTotals(runs=1000, errors=40), TrackTotals(runs=900, errors=4), "inconclusive", "worse than"),
    ],
)
def test_the_daily_verdict(canary: TrackTotals, stable: TrackTotals, decision: str, part: str) -> None:
    verdict = daily(with_totals(canary, stable), NOW)
    assert verdict.decision == decision
    assert part in verdict.reason


def slow(milliseconds: int, runs: int = 100) -> TrackTotals:
    return TrackTotals(runs=runs, latencies={latency_bucket(milliseconds): runs})


@pytest.mark.parametrize(
    ("canary", "stable", "reason"),
    [
        (slow(9000), slow(2000), "p95 latency"),
        (slow(900), slow(200), None),
        (slow(9000, 99), slow(2000), None),
        (TrackTotals(runs=100, cost_nano_usd=300), TrackTotals(runs=100, cost_nano_usd=100), "costs more"),
        (TrackTotals(runs=100, cost_nano_usd=300), TrackTotals(runs=100), None),
        (
            TrackTotals(scored=50, score_sum=30.0, score_squares=18.5),
            TrackTotals(scored=50, score_sum=40.0, score_squares=32.5),
            "judge's scores",
        ),
        (TrackTotals(scored=50, score_sum=38.0, score_squares=29.5), TrackTotals(scored=50, score_sum=40.0), None),
        (TrackTotals(runs=5, errors=5), TrackTotals(runs=5), None),
    ],
)
def test_the_guards_wide_margins(canary: TrackTotals, stable: TrackTotals, reason: str | None) -> None:
    verdict = guard(with_totals(canary, stable), NOW)
    assert (verdict is None) == (reason is None)
    if verdict is not None and reason is not None:
        assert verdict.decision == "rollback"
        assert reason in verdict.reason


@pytest.mark.parametrize(
    ("field", "reason"), [("errors", "errors"), ("leaks", "PII leaks"), ("injections", "injections")]
)
def test_evidence_rolls_back(field: str, reason: str) -> None:
    state = EvidenceState()
    for _ in range(20):
        state = state.after(Block(1, 1, 19, 0))
    rollout = started().rollout
    assert rollout is not None
    verdict = guard(rollout.model_copy(update={field: state}), NOW)
    assert verdict is not None
    assert reason in verdict.reason
    assert verdict.evidence["eValue"] >= verdict.evidence["threshold"]


def test_a_line_survives_its_store() -> None:
    line = started(in_production(), V3)
    assert PromptLine.model_validate(line.to_document()) == line


def test_totals_add_up_and_tell_quantiles() -> None:
    both = slow(100, 90).plus(slow(4000, 10)).plus(TrackTotals(runs=0, errors=3, score_sum=0.5))
    assert (both.runs, both.errors) == (100, 3)
    assert (both.latency_ms(0.5), both.latency_ms(0.95)) == (int(latency_bucket(100)), int(latency_bucket(4000)))
    assert TrackTotals().latency_ms(0.5) is None
    assert TrackTotals().error_rate is None
    assert latency_bucket(10**9) == latency_bucket(10**8)


def test_wilson() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    low, high = wilson_interval(5, 100)
    assert (round(low, 3), round(high, 3)) == (0.022, 0.112)
