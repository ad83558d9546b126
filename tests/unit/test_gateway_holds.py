"""Holds: the input and one answer of each stage, how a hold is stored, and which due holds have no record."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.quota.held_work import HeldWork, UnfinishedWork
from services.gateway.quota.holds import (
    NOTHING,
    AnswerLimits,
    HoldSize,
    UpgradeInput,
    larger_holds,
    stage_holds,
    sum_of_stages,
)
from services.gateway.quota.unrecorded_holds import UnrecordedHolds
from shared.contracts.admission_state import StoredHold
from shared.contracts.quota import PLAN_LIMITS, Meter, Plan
from shared.contracts.token_bounds import (
    RECENT_MESSAGE_CHARACTERS,
    RECENT_MESSAGES,
    REWRITE_FRAME_TOKENS,
    SUMMARY_MESSAGES,
    rewrite_answer_tokens,
    token_bound,
)
from shared.contracts.upgrade_tasks import Stage

LIMITS = AnswerLimits(summary_tokens=600, rewrite_tokens=2000)
TEXT = "Write a poem about autumn"
PROMPT = UpgradeInput([Stage.UPGRADER], TEXT, (), 5)
ALL = [Stage.SUMMARIZER, Stage.RAG, Stage.UPGRADER]


def upgrade_hold(given: UpgradeInput, limits: AnswerLimits = LIMITS) -> HoldSize:
    return sum_of_stages(stage_holds(given, limits))


def test_a_rewrite_holds_its_input_and_one_answer() -> None:
    hold = upgrade_hold(PROMPT)
    assert hold.upgrades == 1
    assert hold.embeddings == 0
    assert hold.tokens == REWRITE_FRAME_TOKENS + token_bound(TEXT) + rewrite_answer_tokens(TEXT, [])
    assert 2_000 < hold.tokens < 3_500


def test_the_free_plan_takes_a_hundred_small_upgrades_at_once() -> None:
    limit = PLAN_LIMITS[Plan.FREE].tokens
    assert limit is not None
    assert 100 * upgrade_hold(replace(PROMPT, prompt=TEXT * 20)).tokens <= limit


def test_an_answer_is_never_longer_than_the_upgrader_asks_for() -> None:
    long = replace(PROMPT, prompt=TEXT * 100)
    assert upgrade_hold(long).tokens == REWRITE_FRAME_TOKENS + token_bound(long.prompt) + LIMITS.rewrite_tokens
    assert upgrade_hold(PROMPT, replace(LIMITS, rewrite_tokens=64)).tokens < upgrade_hold(PROMPT).tokens


def test_only_the_stages_of_the_itinerary_count() -> None:
    sizes = [
        upgrade_hold(replace(PROMPT, itinerary=itinerary, messages=["What is a haiku?"] * 8))
        for itinerary in ([Stage.UPGRADER], [Stage.RAG, Stage.UPGRADER], ALL)
    ]
    assert [size.embeddings > 0 for size in sizes] == [False, True, True]
    assert sizes[0].tokens < sizes[1].tokens < sizes[2].tokens


@pytest.mark.parametrize(
    ("prompt", "messages", "queries"),
    [("x" * 100, [], 1), ("x" * 100, ["y"], 2), ("x" * 101, ["y"], 1), ("x" * 10_000, ["y" * 100_000], 1)],
)
def test_each_query_is_embedded_once(prompt: str, messages: list[str], queries: int) -> None:
    asked = replace(PROMPT, itinerary=ALL, prompt=prompt, messages=messages)
    assert upgrade_hold(asked).embeddings == queries


def test_messages_that_no_stage_reads_hold_nothing() -> None:
    recent = ["Tell me more about it."] * SUMMARY_MESSAGES
    asked = replace(PROMPT, itinerary=ALL, messages=recent)
    assert upgrade_hold(replace(asked, messages=["an earlier one", *recent])) == upgrade_hold(asked)
    rewritten = replace(PROMPT, messages=["x" * RECENT_MESSAGE_CHARACTERS] * RECENT_MESSAGES)
    assert upgrade_hold(replace(rewritten, messages=["y", *rewritten.messages])) == upgrade_hold(rewritten)


def test_of_two_readings_each_stage_holds_the_larger_one() -> None:
    one = {Stage.RAG: HoldSize(0, 5, 2), Stage.UPGRADER: HoldSize(0, 70, 0)}
    other = {Stage.RAG: HoldSize(0, 9, 1), Stage.UPGRADER: HoldSize(0, 60, 0)}
    assert larger_holds(one, other) == {Stage.RAG: HoldSize(0, 9, 2), Stage.UPGRADER: HoldSize(0, 70, 0)}


@given(
    prompt=st.text(min_size=1, max_size=200),
    messages=st.lists(st.text(max_size=300), max_size=12),
    chunks=st.integers(1, 20),
    more=st.text(max_size=50),
)
def test_more_to_read_is_never_held_for_less(prompt: str, messages: list[str], chunks: int, more: str) -> None:
    asked = UpgradeInput(ALL, prompt, messages, chunks)
    # Without its limit an answer may be longer in a denser script: what is compared is what is read.
    limits = AnswerLimits(summary_tokens=600, rewrite_tokens=64)
    hold = upgrade_hold(asked, limits)
    assert upgrade_hold(replace(asked, chunks=chunks + 1), limits).tokens >= hold.tokens
    if messages:
        longer = [*messages[:-1], messages[-1] + more]
        assert upgrade_hold(replace(asked, messages=longer), limits).tokens >= hold.tokens
    assert hold != NOTHING


@pytest.mark.parametrize(("ended", "counted", "text"), [(False, True, "1,20,3,0,1"), (True, False, "1,20,3,1,0")])
def test_a_stored_hold_keeps_its_text(ended: bool, counted: bool, text: str) -> None:
    hold = StoredHold("id", 1, 20, 3, ended, counted, datetime(2026, 11, 20, tzinfo=UTC))
    assert hold.to_text() == text
    assert StoredHold.from_text("id", text, hold.due) == hold
    assert hold.amounts == {Meter.UPGRADES: 1, Meter.TOKENS: 20, Meter.EMBEDDINGS: 3}


class RecordedWork(UnfinishedWork):
    def __init__(self) -> None:
        super().__init__()
        self.recorded: set[str] = set()

    async def with_hold(self, hold_ids: Sequence[str]) -> list[HeldWork]:
        expires_at = datetime(2026, 11, 20, tzinfo=UTC)
        found = self.recorded.intersection(hold_ids)
        return [HeldWork(id_, HoldSize(1, 0, 0), expires_at, ended=False) for id_ in found]


async def test_a_due_hold_is_unrecorded_when_its_record_is_missing_twice() -> None:
    work = RecordedWork()
    holds = UnrecordedHolds(work, seconds_between_checks=0.05)
    assert not await holds.wait_for_second_check(["lost", "late"])
    assert await holds.check(["lost", "late"]) == []
    assert await holds.check(["lost", "late"]) == [], "the second check was too early"
    work.recorded.add("late")
    assert await holds.wait_for_second_check(["lost", "late"])
    assert await holds.check(["lost", "late"]) == ["lost"]
    assert not await holds.wait_for_second_check(["lost", "late"])
