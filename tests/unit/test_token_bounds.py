"""Bounds on tokens against a real tokenizer, and the constants against the templates they stand for."""

import json
import time
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest
from pydantic import BaseModel
from semantic_text_splitter import TextSplitter

from services.summarizer.summary_model import INSTRUCTIONS, ConversationSummary
from services.upgrader.rewriting.rewrite_model import CLOSING, PromptRewrite, contract_text
from shared.contracts.token_bounds import (
    RECENT_MESSAGE_CHARACTERS,
    RECENT_MESSAGES,
    REWRITE_FRAME_TOKENS,
    SUMMARY_FRAME_TOKENS,
    clipped_bound,
    fits_the_rewrite,
    longest_contextual_upgrade,
    longest_full_upgrade,
    rewrite_answer_tokens,
    token_bound,
)
from shared.llm.dialect import strict_schema
from shared.llm.sections import render_sections
from shared.llm.templates import DATA_RULES, render_template

ROOT = Path(__file__).parents[2]
LONGEST_TEXT = 20_000


def tokens(text: str) -> int:
    """The count of the o200k vocabulary, found by splitting: the least capacity that takes the text in one piece."""
    low, high = 1, max(1, 2 * len(text.encode()))
    while low < high:
        middle = (low + high) // 2
        if len(TextSplitter.from_tiktoken_model("gpt-4o", middle, trim=False).chunks(text)) <= 1:
            high = middle
        else:
            low = middle + 1
    return low


@cache
def corpus() -> tuple[tuple[str, int], ...]:
    texts = []
    for file in sorted((ROOT / "tests" / "turns").glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            texts += [text for value in json.loads(line).values() if isinstance(value, list) for text in value]
    for file in sorted((ROOT / "docs").rglob("*.md")):
        text = file.read_text(encoding="utf-8")
        texts += [text[:LONGEST_TEXT], *(part for part in text.split("\n\n")[:40] if part.strip())]
    return tuple((text, tokens(text)) for text in texts if isinstance(text, str))


def test_the_bound_is_hardly_ever_below_the_count() -> None:
    below = [text for text, count in corpus() if token_bound(text) < count]
    assert len(corpus()) > 500
    assert len(below) <= len(corpus()) / 100, below


def test_the_bound_is_within_one_and_a_half_times_the_count() -> None:
    assert sum(token_bound(text) for text, _ in corpus()) <= 1.5 * sum(count for _, count in corpus())


def test_a_kilobyte_takes_microseconds() -> None:
    text = "Rewrite this paragraph, please: 12 items, 3 of them new.\n" * 1_000
    best = min(_seconds(text) for _ in range(5))
    assert best / (len(text) / 1_000) < 0.000_1


def _seconds(text: str) -> float:
    began = time.perf_counter()
    token_bound(text)
    return time.perf_counter() - began


@pytest.mark.parametrize("text", ["", " ", "é", "ế", "猫", "🙂", "\udc80", "\x00"])
def test_every_text_has_a_bound(text: str) -> None:
    assert token_bound(text) >= 1


def _request_tokens(instructions: str, output: type[BaseModel], sections: dict[str, str], closing: str) -> int:
    schema = json.dumps(strict_schema(output), separators=(",", ":"))
    return tokens(f"{instructions}\n{schema}\n{render_sections(sections)}\n\n{closing}")


@pytest.mark.parametrize("mode_is_set", [False, True])
def test_the_frame_of_a_rewrite_covers_its_template_and_schema(mode_is_set: bool) -> None:
    folder = files("services.upgrader.prompts") / "platform"
    template = max((file for file in folder.iterdir() if file.name.endswith(".md")), key=lambda file: file.name)
    values = {
        "data_rules": DATA_RULES, "contract": contract_text(), "mode": "contextual", "mode_is_set": mode_is_set,
        "language": "zh-Hant-TW", "has_conversation": True, "has_documents": True,
    }  # fmt: skip
    instructions = render_template(template.read_text(encoding="utf-8"), values)
    empty = dict.fromkeys(("documents", "summary", "conversation", "prompt"), "")
    frame = _request_tokens(
        instructions, PromptRewrite, {**empty, "mode": "contextual", "language": "zh-Hant-TW"}, CLOSING
    )
    assert frame <= REWRITE_FRAME_TOKENS <= 1.5 * frame


def test_the_frame_of_a_summary_covers_its_template_and_schema() -> None:
    sections = {"conversation": "", "previous_summary": ""}
    frame = _request_tokens(INSTRUCTIONS, ConversationSummary, sections, "")
    assert frame <= SUMMARY_FRAME_TOKENS <= 1.5 * frame


def test_an_answer_bound_covers_the_longest_upgrade_that_passes_the_checks() -> None:
    prompt = "Write about the rain in autumn and what it does to the streets of an old town."
    longest = (prompt + "\n") * 200
    assert rewrite_answer_tokens(prompt, []) >= tokens(longest[: longest_full_upgrade(len(prompt))])
    message = "Here is a plan of the town with all its streets. " * 100
    follow_up = longest[: longest_contextual_upgrade(len(prompt), 0)] + message
    assert rewrite_answer_tokens(prompt, ["short", message]) >= tokens(follow_up)


@pytest.mark.parametrize(
    ("messages", "fits"),
    [
        ([], True),
        (["x"] * RECENT_MESSAGES, True),
        (["x"] * (RECENT_MESSAGES + 1), False),
        (["x" * RECENT_MESSAGE_CHARACTERS], True),
        (["x" * (RECENT_MESSAGE_CHARACTERS + 1)], False),
    ],
)
def test_a_short_conversation_fits_the_rewrite(messages: list[str], fits: bool) -> None:
    assert fits_the_rewrite(messages) is fits


def test_a_clipped_text_has_the_bound_of_what_is_left() -> None:
    assert clipped_bound("word " * 10, 100) == token_bound("word " * 10)
    assert clipped_bound("word " * 10_000, 100) <= token_bound("word " * 20) + 5
