"""Mode of a prompt: a labelled set in twelve languages, and the rules at their edges."""

import pytest

from services.upgrader.reading.mode import decide_mode
from shared.contracts.upgrade_tasks import ConversationMessage
from tests.unit.upgrader_mode_cases import CONTEXTUAL, CONVERSATIONS, FULL


def conversation(name: str) -> list[ConversationMessage]:
    roles = ("user", "assistant")
    return [
        ConversationMessage.model_validate({"role": roles[i % 2], "content": content})
        for i, content in enumerate(CONVERSATIONS[name])
    ]


@pytest.mark.parametrize(("name", "prompt"), CONTEXTUAL)
def test_a_follow_up_is_contextual(name: str, prompt: str) -> None:
    assert decide_mode(prompt, conversation(name)) == "contextual"


@pytest.mark.parametrize(("name", "prompt"), FULL)
def test_a_new_topic_is_full(name: str, prompt: str) -> None:
    assert decide_mode(prompt, conversation(name)) == "full"


@pytest.mark.parametrize("prompt", sorted({prompt for _, prompt in CONTEXTUAL + FULL}))
def test_without_a_conversation_everything_is_full(prompt: str) -> None:
    assert decide_mode(prompt, []) == "full"
    assert decide_mode(prompt, [ConversationMessage(role="system", content="You are a poet.")]) == "full"


def test_a_long_self_contained_prompt_is_full() -> None:
    prompt = (
        "I run a small bakery in Portland with four employees and want to offer a subscription for sourdough bread. "
        "Write a landing page with a headline, three benefits, a price table with two plans and a short FAQ about "
        "delivery days, allergens and cancellation. It should sound warm and honest, avoid superlatives, and be about "
        "400 words long. The audience are people between 30 and 55 who care about where their food comes from."
    )
    assert decide_mode(prompt, conversation("python")) == "full"


def test_only_the_last_turns_count() -> None:
    history = conversation("python") + conversation("poem") * 4
    assert decide_mode("Now write a unit test for a sorting function", history) == "full"


def test_it_is_deterministic() -> None:
    history = conversation("poem")
    assert len({decide_mode("and for Linux?", history) for _ in range(5)}) == 1
