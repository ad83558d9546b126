"""Which changes of a schema count as breaking."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from shared.contracts.schema_compatibility import breaking_changes

OLD: dict[str, Any] = {
    "type": "object",
    "required": ["id"],
    "properties": {
        "id": {"type": "string"},
        "status": {"$ref": "#/$defs/Status"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "count": {"type": "integer", "minimum": 0},
        "at": {"type": "string", "format": "date-time"},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/Part"}},
        "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
    },
    "$defs": {
        "Status": {"type": "string", "enum": ["open", "done"]},
        "Part": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string", "maxLength": 20}}},
    },
}


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    new = copy.deepcopy(OLD)
    change(new)
    return new


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s["properties"].pop("count"), "count: removed"),
        (lambda s: s["required"].append("count"), "count: is now required"),
        (lambda s: (s["properties"].update(x={"type": "string"}), s["required"].append("x")), "x: is now required"),
        (lambda s: s["properties"]["count"].update(type="string"), "count: was integer, is string"),
        (lambda s: s["properties"]["at"].pop("format"), "at: was string (date-time), is string"),
        (lambda s: s["$defs"]["Status"]["enum"].remove("open"), "status: no longer allows open"),
        (lambda s: s["properties"]["id"].update(enum=["a"]), "id: allows only a now"),
        (lambda s: s["properties"].update(note={"type": "string"}), "note: was null or string, is string"),
        (lambda s: s["properties"]["count"].update(minimum=1), "count: minimum is tighter"),
        (lambda s: s["properties"]["count"].update(maximum=9), "count: maximum is tighter"),
        (lambda s: s["properties"]["id"].update(pattern="a+"), "id: another pattern"),
        (lambda s: s["$defs"]["Part"]["properties"].pop("name"), "parts[].name: removed"),
        (lambda s: s["$defs"]["Part"]["properties"]["name"].update(maxLength=9), "parts[].name: maxLength is tighter"),
        (
            lambda s: s["properties"]["counts"]["additionalProperties"].update(type="string"),
            "counts.*: was integer, is string",
        ),
        (lambda s: s.update(additionalProperties=False), "the event: additionalProperties is now restricted"),
    ],
)
def test_breaking(change: Callable[[dict[str, Any]], object], expected: str) -> None:
    assert breaking_changes(OLD, changed(change)) == [expected]


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["properties"].update(extra={"type": "string"}),
        lambda s: s["$defs"]["Status"]["enum"].append("waiting"),
        lambda s: s["$defs"]["Part"]["properties"].update(size={"type": "integer"}),
        lambda s: s["$defs"]["Part"]["properties"]["name"].pop("maxLength"),
        lambda s: s["properties"]["count"].update(description="how many"),
        lambda s: s["properties"].update(status={"type": "string", "enum": ["open", "done"]}),
    ],
)
def test_additive(change: Callable[[dict[str, Any]], object]) -> None:
    assert breaking_changes(OLD, changed(change)) == []


def test_a_recursive_definition_terminates() -> None:
    tree: dict[str, Any] = {
        "$ref": "#/$defs/Node",
        "$defs": {
            "Node": {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/Node"}}}}
        },
    }
    assert breaking_changes(tree, tree) == []
