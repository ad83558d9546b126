"""The evidence against a canary: rarely wrong where there is no difference, quick where there is a large one."""

import random

import pytest

from services.upgrader.prompts.evidence import Block, Evidence
from shared.contracts.prompts import PromptStage, rollout_point

ALPHA = 0.05


def looked_at_after_each_run(
    seed: int, canary: float, stable: float, share: float = 0.5, most: int = 600
) -> int | None:
    """After how many canary runs the evidence speaks against the canary; None when it never does."""
    dice = random.Random(seed)
    evidence, canary_runs, waiting = Evidence(), 0, [0, 0, 0, 0]
    while canary_runs < most:
        on_canary = dice.random() < share
        failed = dice.random() < (canary if on_canary else stable)
        waiting[0 if on_canary else 2] += 1
        waiting[1 if on_canary else 3] += failed
        canary_runs += on_canary
        if waiting[0] and waiting[2]:
            evidence = evidence.after(Block(*waiting))
            waiting = [0, 0, 0, 0]
            if evidence.is_against(ALPHA):
                return canary_runs
    return None


@pytest.mark.parametrize("rate", [0.02, 0.04])
def test_no_difference_is_rarely_called_one(rate: float) -> None:
    alarms = sum(looked_at_after_each_run(seed, rate, rate) is not None for seed in range(300))
    assert alarms <= 300 * ALPHA


def test_a_much_worse_canary_is_found_soon() -> None:
    found = [looked_at_after_each_run(seed, 0.15, 0.02, most=200) for seed in range(100)]
    assert sum(runs is not None for runs in found) >= 95


def test_an_outage_of_both_tracks_is_against_neither() -> None:
    evidence = Evidence()
    for _ in range(50):
        evidence = evidence.after(Block(1, 1, 19, 19))
    assert not evidence.is_against(ALPHA)


def test_a_better_canary_is_no_evidence() -> None:
    evidence = Evidence()
    for _ in range(100):
        evidence = evidence.after(Block(5, 0, 5, 2))
    assert evidence.value < 1


def test_without_runs_of_both_tracks_nothing_is_learned() -> None:
    evidence = Evidence().after(Block(50, 50, 0, 0)).after(Block(0, 0, 50, 0))
    assert evidence.value == pytest.approx(1.0)
    assert (evidence.runs, evidence.failures) == (100, 50)


def test_overwhelming_evidence_does_not_overflow() -> None:
    evidence = Evidence()
    for _ in range(2_000):
        evidence = evidence.after(Block(50, 50, 50, 0))
    assert evidence.is_against(1e-9)


@pytest.mark.parametrize("numbers", [(1, 2, 0, 0), (0, 0, 1, -1), (-1, -1, 0, 0)])
def test_impossible_numbers_are_refused(numbers: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="failures"):
        Block(*numbers)


def test_shares_are_met_and_grow_without_moving_anybody_back() -> None:
    points = [rollout_point("tenant", "upgrader", f"u{number}") for number in range(10_000)]
    on_canary: set[int] = set()
    for stage in (PromptStage.CANARY_5, PromptStage.CANARY_25, PromptStage.CANARY_50, PromptStage.PRODUCTION):
        now = {number for number, point in enumerate(points) if point < stage.share}
        assert on_canary <= now
        assert abs(len(now) / 10_000 - stage.share) <= 0.01
        on_canary = now


def test_points_depend_on_tenant_name_and_user_alone() -> None:
    assert rollout_point("t", "upgrader", "u") == rollout_point("t", "upgrader", "u")
    assert (
        len({rollout_point(*parts) for parts in (("t", "a", "u"), ("t", "b", "u"), ("s", "a", "u"), ("t", "a", "v"))})
        == 4
    )
    assert rollout_point("ab", "c", "d") != rollout_point("a", "bc", "d")


def test_stages_follow_each_other() -> None:
    stage, seen = PromptStage.DEVELOPMENT, []
    while stage is not PromptStage.PRODUCTION:
        stage = stage.next()
        seen.append(stage.share)
    assert seen == [0.05, 0.25, 0.5, 1.0]
    for last in (PromptStage.PRODUCTION, PromptStage.ROLLED_BACK, PromptStage.RETIRED):
        with pytest.raises(ValueError, match="no stage follows"):
            last.next()
