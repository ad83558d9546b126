"""The published schemas match the models and contain no breaking change."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from shared.contracts import schema_files
from shared.contracts.topics import DOCUMENTS_INDEXED, TOPICS, Topic
from shared.privacy.placeholders import PlaceholderMap
from shared.privacy.redaction import redact

topic_names = [topic.name for topic in TOPICS]


def example(topic: Topic) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(schema_files.example_file(topic).read_text(encoding="utf-8"))
    return content


def test_schemas_are_current_and_compatible() -> None:
    assert schema_files.problems() == []


@pytest.mark.parametrize("topic", TOPICS, ids=topic_names)
def test_the_example_keeps_to_the_schema_and_shows_every_field(topic: Topic) -> None:
    schema = schema_files.schema_of(topic)
    jsonschema.validators.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(example(topic))
    assert set(example(topic)) == set(schema["properties"])


@pytest.mark.parametrize("topic", TOPICS, ids=topic_names)
def test_the_example_round_trips_through_the_model(topic: Topic) -> None:
    assert topic.model is not None
    assert topic.model.model_validate(example(topic)).to_document() == example(topic)


def test_no_example_is_left_over() -> None:
    assert {file.stem for file in schema_files.EXAMPLES.glob("*.json")} == set(topic_names)


def test_writing_refuses_a_breaking_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_files, "SCHEMAS", tmp_path)
    assert schema_files.write() == []
    topic = TOPICS[0]
    file = schema_files.schema_file(topic)
    published = json.loads(file.read_text())
    published["properties"]["region"] = {"type": "string"}
    file.write_text(schema_files.rendered(published))
    assert schema_files.write() == [
        f"{topic.name} breaks its readers: region: removed (make a new version of the topic)"
    ]
    assert json.loads(file.read_text()) == published


def test_an_addition_only_requires_rewriting_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_files, "SCHEMAS", tmp_path)
    schema_files.write()
    topic = DOCUMENTS_INDEXED
    published = schema_files.published_schema(topic)
    assert published is not None
    published["properties"].pop("error")
    schema_files.schema_file(topic).write_text(schema_files.rendered(published))
    assert schema_files.problems() == [f"{topic.name} has additions that its schema file lacks: run `make contracts`"]
    assert schema_files.write() == []


@pytest.mark.parametrize("topic", TOPICS, ids=topic_names)
def test_the_example_holds_no_personal_values(topic: Topic) -> None:
    texts = list(texts_of(example(topic)))
    placeholders = PlaceholderMap()
    assert [redact(text, placeholders) for text in texts] == texts
    assert "userId" not in json.dumps(example(topic))


def texts_of(value: Any) -> Iterator[str]:
    """Yields every text written by people in a JSON value, but no ids, times or names."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in {"userPrompt", "upgradedPrompt", "reasoning", "missingQuestions", "content", "text", "title"}:
                yield from [inner] if isinstance(inner, str) else list(inner or ())
            elif isinstance(inner, dict | list):
                yield from texts_of(inner)
    elif isinstance(value, list):
        for item in value:
            yield from [item] if isinstance(item, str) else texts_of(item)
