"""How much an upgrade holds: the worst case of each stage that it goes through."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.quota.holds import HoldSize, ModelBounds, UpgradeInput, stage_holds, sum_of_stages
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
