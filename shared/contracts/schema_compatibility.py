"""Finds the changes of a JSON Schema that break readers of the published one."""

from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

# A bound that is new or tighter rejects values that were valid before; one that is removed or looser does not.
_UPPER_BOUNDS = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
_LOWER_BOUNDS = ("minimum", "exclusiveMinimum", "minLength", "minItems")


def breaking_changes(old: Schema, new: Schema) -> list[str]:
    """Each breaking change from `old` to `new`, with its path in the schema; empty when there is none.

    Breaking: a removed field, a newly required field, another type or format, a value removed from an enum, a tighter
    bound. Fields, enum values and descriptions may be added.
    """
    return sorted(set(_compare("", old, new, _Definitions(old, new), frozenset())))


class _Definitions:
    def __init__(self, old: Schema, new: Schema) -> None:
        self._old, self._new = old.get("$defs", {}), new.get("$defs", {})

    def old(self, schema: Schema) -> tuple[str, Schema]:
        return _resolved(schema, self._old)

    def new(self, schema: Schema) -> tuple[str, Schema]:
        return _resolved(schema, self._new)


def _resolved(schema: Schema, definitions: Mapping[str, Schema]) -> tuple[str, Schema]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return (name, definitions[name]) if name else ("", schema)


def _compare(
    place: str, old: Schema, new: Schema, definitions: _Definitions, open_references: frozenset[str]
) -> Iterator[str]:
    old_name, old = definitions.old(old)
    _, new = definitions.new(new)
    if old_name and old_name in open_references:
        return  # a definition that contains itself
    within = open_references | {old_name} if old_name else open_references
    here = place or "the event"
    if "anyOf" in old or "anyOf" in new:
        yield from _compare_variants(place, old, new, definitions, within)
        return
    if old.get("type") != new.get("type") or old.get("format") != new.get("format"):
        yield f"{here}: was {_kind(old)}, is {_kind(new)}"
        return
    yield from _compare_values(here, old, new)
    yield from _compare_fields(place, old, new, definitions, within)
    for keyword, suffix in (("items", "[]"), ("additionalProperties", ".*")):
        inside, now = old.get(keyword), new.get(keyword)
        if isinstance(inside, Mapping) and isinstance(now, Mapping):
            yield from _compare(place + suffix, inside, now, definitions, within)
        elif isinstance(now, Mapping) or (now is False and inside is not False):
            yield f"{here}: {keyword} is now restricted"


def _compare_fields(
    place: str, old: Schema, new: Schema, definitions: _Definitions, within: frozenset[str]
) -> Iterator[str]:
    before, after = old.get("properties", {}), new.get("properties", {})
    for name, schema in before.items():
        if name in after:
            yield from _compare(f"{place}.{name}".lstrip("."), schema, after[name], definitions, within)
        else:
            yield f"{place}.{name}: removed".lstrip(".")
    for name in sorted(set(new.get("required", ())) - set(old.get("required", ()))):
        yield f"{place}.{name}: is now required".lstrip(".")


def _compare_values(here: str, old: Schema, new: Schema) -> Iterator[str]:
    before, after = _values(old), _values(new)
    if after is not None and before is None:
        yield f"{here}: allows only {', '.join(sorted(map(str, after)))} now"
    elif after is not None and before is not None:
        for value in sorted(before - after, key=str):
            yield f"{here}: no longer allows {value}"
    for bound in _UPPER_BOUNDS:
        if bound in new and (bound not in old or new[bound] < old[bound]):
            yield f"{here}: {bound} is tighter"
    for bound in _LOWER_BOUNDS:
        if bound in new and (bound not in old or new[bound] > old[bound]):
            yield f"{here}: {bound} is tighter"
    if "pattern" in new and new["pattern"] != old.get("pattern"):
        yield f"{here}: another pattern"


def _compare_variants(
    place: str, old: Schema, new: Schema, definitions: _Definitions, within: frozenset[str]
) -> Iterator[str]:
    """Variants are matched by their kind: a union that gains or loses a kind has another type."""
    before = {_kind(definitions.old(variant)[1]): variant for variant in old.get("anyOf", [old])}
    after = {_kind(definitions.new(variant)[1]): variant for variant in new.get("anyOf", [new])}
    if before.keys() != after.keys():
        yield f"{place or 'the event'}: was {' or '.join(sorted(before))}, is {' or '.join(sorted(after))}"
    for kind in before.keys() & after.keys():
        yield from _compare(place, before[kind], after[kind], definitions, within)


def _values(schema: Schema) -> frozenset[Any] | None:
    if "const" in schema:
        return frozenset([schema["const"]])
    return frozenset(schema["enum"]) if "enum" in schema else None


def _kind(schema: Schema) -> str:
    kind = str(schema.get("type", "anything"))
    return f"{kind} ({schema['format']})" if "format" in schema else kind
