"""Writes or checks the documents that are generated from code: settings, event tables, plans and AsyncAPI."""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.local.settings_reference import env_example, settings_page
from shared.contracts.quota import PLAN_LIMITS
from shared.contracts.schema_files import schema_of
from shared.contracts.topics import KIB, TOPICS, Topic, TopicKind, consumed_by_us, dead_letter_topic
from shared.messaging.operate.asyncapi import asyncapi_document

_PROJECT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- /generated -->)", re.DOTALL)
_WITH_BLOCKS = ("docs/events.md", "docs/access.md")
_TEAMS = "internal teams"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.local.generated_docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 when a file is outdated")
    if parser.parse_args(arguments).check:
        stale = not_current()
        for path in stale:
            sys.stderr.write(f"{path} is outdated: run `make contracts`\n")
        return 1 if stale else 0
    for path, content in documents().items():
        (_PROJECT / path).write_text(content, encoding="utf-8")
    return 0


def documents() -> dict[str, str]:
    """Returns the expected content of each generated file, by its path in the project."""
    asyncapi = json.dumps(asyncapi_document(), indent=2, ensure_ascii=False) + "\n"
    blocks = {"topics": topics_table(), "fields": fields_tables(), "plans": plans_table()}
    filled = {
        path: _BLOCK.sub(
            lambda found: f"{found[1]}\n{blocks[found[2]]}\n\n{found[3]}", (_PROJECT / path).read_text(encoding="utf-8")
        )
        for path in _WITH_BLOCKS
    }
    return {
        ".env.example": env_example(),
        "docs/settings.md": settings_page(),
        "docs/asyncapi.json": asyncapi,
        **filled,
    }


def not_current() -> list[str]:
    """Returns the paths of generated files that are missing or outdated."""
    return [path for path, content in documents().items() if _content(_PROJECT / path) != content]


def plans_table() -> str:
    """Returns a Markdown table of the plans with their monthly limits."""
    rows = ["| plan | upgrades | tokens | embeddings |", "|---|---|---|---|"]
    for plan, limits in PLAN_LIMITS.items():
        cells = (_amount(limit) for limit in (limits.upgrades, limits.tokens, limits.embeddings))
        rows.append(f"| {plan.value} | {' | '.join(cells)} |")
    return "\n".join(rows)


def topics_table() -> str:
    """Returns a Markdown table of every topic in the registry, and a paragraph on dead-letter topics."""
    lines = [
        "| topic | kind | key | written by | read by | partitions | kept | largest record |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for topic in TOPICS:
        lines.append(_topic_row(topic))
    return "\n".join([*lines, "", _dead_letters()])


def fields_tables() -> str:
    """Returns a Markdown section with the fields of each topic that other teams may read."""
    sections = [
        _fields_section(topic) for topic in TOPICS if topic.kind is TopicKind.FACT and _TEAMS in topic.consumers
    ]
    return "\n\n".join(sections)


def _amount(limit: int | None) -> str:
    return "unlimited" if limit is None else f"{limit:,}"


def _dead_letters() -> str:
    sources = [topic for topic in TOPICS if consumed_by_us(topic)]
    kept: dict[str, list[str]] = {}
    for source in sources:
        kept.setdefault(dead_letter_topic(source).kept, []).append(f"`{source.name}`")
    times = " and ".join(f"{time} for {', '.join(names)}" for time, names in kept.items())
    without = " and ".join(f"`{topic.name}`" for topic in TOPICS if not consumed_by_us(topic))
    partitions = dead_letter_topic(sources[0]).partitions
    return (
        f"Each topic that a service reads has a dead-letter topic, `<topic>.dlq`: {partitions} partition, records of "
        f"up to 64 KiB more than its source, kept {times}."
        + (f" {without} have none, because only other teams read them." if without else "")
    )


def _topic_row(topic: Topic) -> str:
    cells = (
        f"`{topic.name}`",
        topic.kind.value,
        f"`{topic.key}`",
        ", ".join(topic.producers),
        ", ".join(topic.consumers),
        str(topic.partitions),
        topic.kept,
        f"{topic.max_message_bytes // KIB} KiB",
    )
    return f"| {' | '.join(cells)} |"


def _fields_section(topic: Topic) -> str:
    schema = schema_of(topic)
    lines = [
        f"### `{topic.name}`",
        "",
        f"{topic.description} [Schema](../shared/contracts/schemas/{topic.name}.json),"
        f" [example](../shared/contracts/examples/{topic.name}.json).",
        "",
        "| field | type | |",
        "|---|---|---|",
    ]
    for name, field in schema["properties"].items():
        note = field.get("description", "")
        lines.append(f"| `{name}` | {_type(field, schema.get('$defs', {}))} | {note} |")
    return "\n".join(lines)


def _type(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "$ref" in field:
        return _type(definitions[field["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in field:
        kinds = [_type(variant, definitions) for variant in field["anyOf"]]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in field:
        return "one of " + ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return f"list of {_type(field['items'], definitions)}"
    if "properties" in field:
        return "{" + ", ".join(field["properties"]) + "}"
    if field.get("format") == "date-time":
        return "time, RFC 3339 UTC"
    return str(field.get("type", "anything"))


def _content(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
