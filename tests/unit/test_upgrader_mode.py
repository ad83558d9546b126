"""Mode of a prompt: a labelled set in twelve languages, and the rules at their edges."""

import json
from pathlib import Path

import pytest

from services.upgrader.reading import mode
from services.upgrader.reading.mode import guess_mode
from shared.contracts.upgrade_tasks import ConversationMessage
from tests.turns.fit import fitted, rates
from tests.turns.labelled import labelled_turns
from tests.unit.upgrader_mode_cases import CONTEXTUAL, CONVERSATIONS, FULL


def guess(prompt: str, history: list[ConversationMessage]) -> str:
    return guess_mode(prompt, history).mode


def conversation(name: str) -> list[ConversationMessage]:
    roles = ("user", "assistant")
    return [
        ConversationMessage.model_validate({"role": roles[i % 2], "content": content})
        for i, content in enumerate(CONVERSATIONS[name])
    ]


def test_follow_ups_of_the_labelled_set_are_contextual() -> None:
    missed = [prompt for name, prompt in CONTEXTUAL if guess(prompt, conversation(name)) != "contextual"]
    assert len(missed) <= len(CONTEXTUAL) * 0.1, missed


def test_new_topics_of_the_labelled_set_are_full() -> None:
    wrong = [prompt for name, prompt in FULL if guess(prompt, conversation(name)) != "full"]
    assert len(wrong) <= len(FULL) * 0.05, wrong


def test_turns_that_were_kept_from_fitting_are_told_apart() -> None:
    turns = labelled_turns(kept_for_test=True)
    seen, wrong = rates(turns)
    assert seen >= 0.9
    assert wrong <= 0.05
    assert len({turn.language for turn in turns}) == 8
    assert len(turns) + len(labelled_turns(kept_for_test=False)) >= 600


def test_the_weights_are_those_that_the_turns_give() -> None:
    stored = json.loads((Path(mode.__file__).parent / "mode_weights.json").read_text())
    assert stored == pytest.approx(fitted(labelled_turns(kept_for_test=False)), abs=0.01)


@pytest.mark.parametrize(
    ("prompt", "mode", "is_sure"),
    [
        ("make it shorter", "contextual", True),
        ("why?", "contextual", True),
        ("New topic: how do vaccines work?", "full", True),
        ("Write integration tests", "contextual", False),
    ],
)
def test_the_rules_are_sure_of_what_is_plain(prompt: str, mode: str, is_sure: bool) -> None:
    hint = guess_mode(prompt, conversation("python"))
    assert hint.is_sure is is_sure
    if is_sure:
        assert hint.mode == mode


@pytest.mark.parametrize("prompt", sorted({prompt for _, prompt in CONTEXTUAL + FULL}))
def test_without_a_conversation_everything_is_full(prompt: str) -> None:
    assert guess(prompt, []) == "full"
    assert guess(prompt, [ConversationMessage(role="system", content="You are a poet.")]) == "full"


def test_a_long_self_contained_prompt_is_full() -> None:
    prompt = (
        "I run a small bakery in Portland with four employees and want to offer a subscription for sourdough bread. "
        "Write a landing page with a headline, three benefits, a price table with two plans and a short FAQ about "
        "delivery days, allergens and cancellation. It should sound warm and honest, avoid superlatives, and be about "
        "400 words long. The audience are people between 30 and 55 who care about where their food comes from."
    )
    assert guess(prompt, conversation("python")) == "full"


def test_only_the_last_turns_count() -> None:
    history = conversation("python") + conversation("poem") * 4
    assert guess("Now write a unit test for a sorting function", history) == "full"


def test_it_is_deterministic() -> None:
    history = conversation("poem")
    assert len({guess("and for Linux?", history) for _ in range(5)}) == 1
