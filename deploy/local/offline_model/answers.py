"""Structured answers of the offline model: rewrites, summaries, and minimal values for any other JSON schema."""

from dataclasses import dataclass, field
from typing import Any

_MAX_DEPTH = 12


@dataclass
class Rewrite:
    """A rewritten prompt."""

    upgraded_prompt: str
    reasoning: str
    missing_questions: list[str] = field(default_factory=list)
    confidence: float = 0.5
    cited_documents: list[int] = field(default_factory=list)


@dataclass
class Summary:
    """A summarized conversation. Field names are those of the structured output."""

    goal: str = ""
    facts: list[str] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    decisions: list[str] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)


def minimal_value(schema: dict[str, Any]) -> Any:
    """Returns the emptiest value that the schema allows: "", 0, false, [] or null; objects get required fields only."""
    return _value(schema, schema, 0)


def _value(schema: Any, root: dict[str, Any], depth: int) -> Any:
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return None
    if "$ref" in schema:
        return _value(_resolve(str(schema["$ref"]), root), root, depth + 1)
    for keyword in ("const", "default"):
        if keyword in schema:
            return schema[keyword]
    if schema.get("enum"):
        return schema["enum"][0]
    for keyword in ("anyOf", "oneOf"):
        if schema.get(keyword):
            options = schema[keyword]
            null = any(isinstance(option, dict) and option.get("type") == "null" for option in options)
            return None if null else _value(options[0], root, depth + 1)
    if schema.get("allOf"):
        merged: dict[str, Any] = {}
        for part in schema["allOf"]:
            merged.update(part if isinstance(part, dict) else {})
        return _value(merged, root, depth + 1)
    return _of_type(schema, root, depth)


def _of_type(schema: dict[str, Any], root: dict[str, Any], depth: int) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else None)
    if isinstance(kind, list):
        kind = "null" if "null" in kind else kind[0]
    match kind:
        case "object":
            properties = schema.get("properties", {})
            return {name: _value(properties.get(name, {}), root, depth + 1) for name in schema.get("required", [])}
        case "array":
            return [_value(schema.get("items", {}), root, depth + 1) for _ in range(int(schema.get("minItems", 0)))]
        case "string":
            return "-" * int(schema.get("minLength", 0))
        case "integer" | "number":
            return _number(schema, whole=kind == "integer")
        case "boolean":
            return False
        case _:
            return None


def _number(schema: dict[str, Any], *, whole: bool) -> int | float:
    step: int | float = 1 if whole else 0.5
    lowest = schema.get("minimum", schema.get("exclusiveMinimum", -step) + step)
    highest = schema.get("maximum", schema.get("exclusiveMaximum", step) - step)
    value = lowest if lowest > 0 else min(0, highest)
    return int(value) if whole else float(value)


def _resolve(reference: str, root: dict[str, Any]) -> Any:
    node: Any = root
    for part in reference.removeprefix("#/").split("/"):
        node = node.get(part) if isinstance(node, dict) else None
    return node
