"""Holds: the worst case of an upgrade's stages, how a hold is stored, and which due holds have no record."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.quota.held_work import HeldWork, UnfinishedWork
from services.gateway.quota.holds import HoldSize, ModelBounds, UpgradeInput, stage_holds, sum_of_stages
from services.gateway.quota.unrecorded_holds import UnrecordedHolds
from shared.contracts.admission_state import StoredHold
from shared.contracts.quota import Meter
from shared.contracts.upgrade_tasks import Stage

BOUNDS = ModelBounds(summary_tokens=600, rewrite_tokens=2000, requests_per_call=4)
PROMPT = UpgradeInput([Stage.UPGRADER], prompt_bytes=100, prompt_characters=100, history_bytes=0, documents=5)
ALL = [Stage.SUMMARIZER, Stage.RAG, Stage.UPGRADER]


def upgrade_hold(given: UpgradeInput, bounds: ModelBounds) -> HoldSize:
    return sum_of_stages(stage_holds(given, bounds))


def test_each_request_of_a_call_may_read_everything_and_answer_as_long_as_it_can() -> None:
    hold = upgrade_hold(PROMPT, BOUNDS)
    assert hold.upgrades == 1
    assert hold.embeddings == 0
    assert hold.tokens >= 4 * (PROMPT.prompt_bytes + 2000)


def test_only_the_stages_of_the_itinerary_count() -> None:
    sizes = [
        upgrade_hold(replace(PROMPT, itinerary=itinerary, history_bytes=500), BOUNDS)
        for itinerary in ([Stage.UPGRADER], [Stage.RAG, Stage.UPGRADER], ALL)
    ]
    assert [size.embeddings > 0 for size in sizes] == [False, True, True]
    assert sizes[0].tokens < sizes[1].tokens < sizes[2].tokens


@pytest.mark.parametrize(
    ("characters", "history", "queries"), [(100, 0, 1), (100, 50, 2), (101, 50, 1), (10_000, 100_000, 1)]
)
def test_each_query_is_an_embedding_at_each_attempt(characters: int, history: int, queries: int) -> None:
    asked = replace(PROMPT, itinerary=ALL, prompt_characters=characters, history_bytes=history)
    assert upgrade_hold(asked, BOUNDS).embeddings == queries * BOUNDS.requests_per_call


@given(
    prompt=st.integers(1, 40_000),
    history=st.integers(0, 400_000),
    documents=st.integers(1, 20),
    more=st.integers(0, 1000),
)
def test_more_to_read_is_never_held_for_less(prompt: int, history: int, documents: int, more: int) -> None:
    asked = UpgradeInput(ALL, prompt, min(prompt, 10_000), history, documents)
    hold = upgrade_hold(asked, BOUNDS)
    for larger in (replace(asked, prompt_bytes=prompt + more), replace(asked, documents=documents + more)):
        assert upgrade_hold(larger, BOUNDS).tokens >= hold.tokens
    assert upgrade_hold(replace(asked, history_bytes=history + more), BOUNDS).tokens >= hold.tokens
    assert hold != HoldSize(0, 0, 0)


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
