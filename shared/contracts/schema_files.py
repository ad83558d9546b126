"""Writes the published JSON Schemas: `python -m shared.contracts.schema_files`; `--check` only compares them.

A breaking schema never overwrites the published one: such a change needs a new version of the topic.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from shared.contracts.schema_compatibility import breaking_changes
from shared.contracts.topics import TOPICS, Topic

_FOLDER = Path(__file__).parent
SCHEMAS = _FOLDER / "schemas"
EXAMPLES = _FOLDER / "examples"


class _WithoutFieldTitles(GenerateJsonSchema):
    """Leaves out field titles, which only repeat the field names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schema_of(topic: Topic) -> dict[str, Any]:
    """The JSON Schema of the data of a topic's events."""
    if topic.model is None:
        raise ValueError(f"{topic.name} carries no events")
    schema = topic.model.model_json_schema(by_alias=True, mode="validation", schema_generator=_WithoutFieldTitles)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:prompt-upgrader:schema:{topic.name}",
        **schema,
    }


def published_schema(topic: Topic) -> dict[str, Any] | None:
    """The checked-in schema, or None when the topic has none yet."""
    file = schema_file(topic)
    return json.loads(file.read_text()) if file.is_file() else None


def schema_file(topic: Topic) -> Path:
    return SCHEMAS / f"{topic.name}.json"


def example_file(topic: Topic) -> Path:
    return EXAMPLES / f"{topic.name}.json"


def rendered(schema: dict[str, Any]) -> str:
    """The text of a schema file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def problems() -> list[str]:
    """The problems of the checked-in schemas: breaking changes, and missing, outdated or superfluous files."""
    found = []
    for topic in TOPICS:
        published, current = published_schema(topic), schema_of(topic)
        if published is None:
            found.append(f"{topic.name} has no schema file: run `make contracts`")
            continue
        breaking = breaking_changes(published, current)
        found += [f"{topic.name} breaks its readers: {change} (make a new version of the topic)" for change in breaking]
        if not breaking and schema_file(topic).read_text() != rendered(current):
            found.append(f"{topic.name} has additions that its schema file lacks: run `make contracts`")
    known = {schema_file(topic) for topic in TOPICS}
    return found + [f"{file.name} belongs to no topic" for file in sorted(SCHEMAS.glob("*.json")) if file not in known]


def write() -> list[str]:
    """Writes every schema without breaking changes, and returns the remaining `problems`."""
    SCHEMAS.mkdir(exist_ok=True)
    for topic in TOPICS:
        published, current = published_schema(topic), schema_of(topic)
        if published is None or not breaking_changes(published, current):
            schema_file(topic).write_text(rendered(current))
    return problems()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m shared.contracts.schema_files", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 when something is not current")
    found = problems() if parser.parse_args(arguments).check else write()
    for problem in found:
        sys.stderr.write(problem + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
