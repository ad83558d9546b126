"""Summaries of the offline model, and minimal values for unknown schemas."""

import json
from dataclasses import asdict
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.local.offline_model.answers import minimal_value
from deploy.local.offline_model.languages import CODES, Language, detect, language_of
from deploy.local.offline_model.summaries import summarize

SHOP = """user: Hi! I run a small online shop for ceramic mugs. We ship from Da Nang to 14 countries. Can you write a \
product description for our new blue mug? It costs 25 € and holds 350 ml. Please keep it under 80 words.

assistant: Meet the blue mug. It holds 350 ml and costs 25 €.

user: I tried "handmade with love" before but it didn't work. Let's go with a factual tone.

assistant: Understood.

user: make it shorter and for tourists

user: Thanks! Send it to <EMAIL_1>."""


def summary_of(conversation: str, previous: dict[str, Any] | None = None) -> dict[str, Any]:
    sections = {"conversation": conversation}
    if previous is not None:
        sections["previous_summary"] = json.dumps(previous)
    return asdict(summarize(sections))


def test_a_conversation_is_sorted_into_what_the_rewrite_needs() -> None:
    summary = summary_of(SHOP)

    assert summary["goal"] == "Write a product description for our new blue mug."
    assert "It costs 25 € and holds 350 ml." in summary["facts"]
    assert any("14 countries" in fact for fact in summary["facts"])
    assert "keep it under 80 words." in summary["constraints"]
    assert "make it shorter and for tourists" in summary["constraints"]
    assert summary["decisions"] == ["Let's go with a factual tone."]
    assert summary["tried"] == ['I tried "handmade with love" before but it didn\'t work.']
    assert "<EMAIL_1>" in json.dumps(summary)


def test_a_vietnamese_conversation_is_summarized() -> None:
    summary = summary_of(
        "user: Tôi là giáo viên lớp 8 ở Huế. Hãy giải thích quang hợp là gì cho học sinh của tôi, dưới 200 từ.\n\n"
        "assistant: Cây dùng ánh sáng.\n\nuser: Tôi đã thử dùng video nhưng học sinh không hiểu."
    )

    assert summary["goal"].startswith("Giải thích quang hợp là gì")
    assert summary["facts"] == ["Tôi là giáo viên lớp 8 ở Huế."]
    assert summary["constraints"] == ["dưới 200 từ"]
    assert summary["tried"] == ["Tôi đã thử dùng video nhưng học sinh không hiểu."]


def test_a_summary_extends_the_previous_one() -> None:
    previous = summary_of(SHOP)

    summary = summary_of("user: now in German please", previous)

    assert summary["goal"] == previous["goal"]
    assert summary["facts"] == previous["facts"]
    assert summary["constraints"] == [*previous["constraints"], "now in German please"]


def test_a_new_request_is_the_new_goal() -> None:
    summary = summary_of("user: Plan a trip to Hue for 5 people.", summary_of(SHOP))

    assert summary["goal"] == "Plan a trip to Hue for 5 people."


def test_repeats_are_not_collected() -> None:
    previous = summary_of(SHOP)

    assert summary_of(SHOP, previous) == previous


def test_lists_are_bounded() -> None:
    facts = " ".join(f"My colleague number {index} works in building {index}." for index in range(100))

    assert len(summary_of(f"user: {facts}")["facts"]) == 8


@pytest.mark.parametrize("previous", ["", "null", "[]", "{", '{"goal": 7, "facts": "x"}'])
def test_a_broken_previous_summary_counts_as_none(previous: str) -> None:
    summary = summarize({"conversation": "user: Explain HTTPS.", "previous_summary": previous})

    assert summary.goal == "Explain HTTPS."


@settings(deadline=None, max_examples=80)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=400))
def test_any_conversation_gets_a_summary(text: str) -> None:
    for conversation in (text, f"user: {text}\n\nassistant: {text}"):
        assert set(summary_of(conversation)) == {"goal", "facts", "constraints", "decisions", "tried"}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Can you help me with the letter to my boss?", "en"),
        ("Hãy giúp tôi viết thư cho sếp của tôi", "vi"),
        ("Kannst du mir mit dem Brief an meinen Chef helfen?", "de"),
        ("Peux-tu m'aider avec la lettre pour mon patron ?", "fr"),
        ("¿Puedes ayudarme con la carta para mi jefe?", "es"),
        ("Você pode me ajudar com a carta para o meu chefe?", "pt"),
        ("Puoi aiutarmi con la lettera per il mio capo?", "it"),
        ("Kun je me helpen met de brief aan mijn baas?", "nl"),
        ("東京の天気", None),
        ("", None),
    ],
)
def test_a_language_is_detected_by_its_stopwords(text: str, code: str | None) -> None:
    found = detect(text)

    assert (found.code if found else None) == code


@pytest.mark.parametrize("code", CODES)
def test_every_language_has_the_entries_of_english(code: str) -> None:
    language, english = language_of(code), language_of("en")
    assert isinstance(language, Language)
    assert isinstance(english, Language)

    for name in ("goals", "domains", "formats", "changes", "roles", "format_phrases", "change_phrases", "phrases"):
        assert set(getattr(language, name)) == set(getattr(english, name)), name
    assert set(language.questions) == set(english.questions)
    assert set(language.reasoning) == set(english.reasoning)
    assert set(language.language_words) <= set(language.language_names)
    assert len(language.headings) == len(set(language.headings)) == 5
    for name, phrase in {**language.phrases, **language.change_phrases}.items():
        expected = {**english.phrases, **english.change_phrases}[name]
        assert phrase.count("{}") == expected.count("{}"), name
    assert language.pattern
    assert language.table
    assert len(language.ordinal_patterns) == 5


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "string", "minLength": 2}}, "required": ["a"]},
        {"type": "array", "items": {"type": "integer", "minimum": 3}, "minItems": 2},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        {"type": "integer", "exclusiveMaximum": -4},
        {"anyOf": [{"type": "string"}, {"type": "null"}]},
        {"type": ["string", "null"]},
        {"enum": ["b", "c"]},
        {"$ref": "#/$defs/x", "$defs": {"x": {"type": "boolean"}}},
        {"allOf": [{"type": "object"}, {"properties": {"a": {"const": 5}}, "required": ["a"]}]},
    ],
)
def test_values_for_an_unknown_schema_are_valid(schema: dict[str, Any]) -> None:
    jsonschema.validate(minimal_value(schema), schema)


def test_a_recursive_schema_terminates() -> None:
    minimal_value({"$ref": "#"})
    minimal_value({"type": "array", "minItems": 1, "items": {"$ref": "#"}})
