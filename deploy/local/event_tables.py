"""The tables of docs/events.md, from the registry of topics and the schemas."""

from collections.abc import Mapping
from typing import Any

from shared.contracts.schema_files import schema_of
from shared.contracts.topics import KIB, TOPICS, Topic, TopicKind, consumed_by_us, dead_letter_topic

_TEAMS = "internal teams"


def topics_table() -> str:
    """Every topic of the registry."""
    lines = [
        "| topic | kind | key | written by | read by | partitions | kept | largest record |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for topic in TOPICS:
        lines.append(_topic_row(topic))
    return "\n".join([*lines, "", _dead_letters()])


def fields_tables() -> str:
    """The data of each topic that other teams may read, field by field."""
    sections = [
        _fields_section(topic) for topic in TOPICS if topic.kind is TopicKind.FACT and _TEAMS in topic.consumers
    ]
    return "\n\n".join(sections)


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
        + (f" {without} have none: only other teams read them." if without else "")
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
