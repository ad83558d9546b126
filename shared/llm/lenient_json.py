"""Parses the structured answer in a model's text, tolerating common deviations from the requested JSON.

Accepted: text, `<think>` blocks or code fences around the object, the object twice, raw line breaks in strings,
trailing commas, names in camelCase or with spaces, the object nested in another one, optional fields that are missing,
null or of a similar type, and an answer that was cut off after its required fields.
"""

import re
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import from_json

T = TypeVar("T", bound=BaseModel)

_THINKING = re.compile(r"<(think|thinking|reasoning)>.*?</\1>", re.DOTALL | re.IGNORECASE)
_UNFINISHED_THINKING = re.compile(r"\A.*</(?:think|thinking|reasoning)>", re.DOTALL | re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_NUMBER = re.compile(r"-?\d+(?:[.,]\d+)?")
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_DEEPEST = 4
_SCHEMA_KEYWORDS = ("properties", "$defs", "definitions")  # a repeated schema is not an answer
_MOST_OBJECTS = 50


class InvalidOutput(Exception):
    """The text holds no object with the required fields. `hint` says why and quotes nothing of the text."""

    def __init__(self, hint: str) -> None:
        super().__init__(hint)
        self.hint = hint


def read_output(text: str, output: type[T], *, cut_off: bool = False) -> T:
    """`text` as an `output`: required fields must be there and valid, the others fall back to their defaults.

    `cut_off`: the server reported that the text was cut off, so an unclosed string is not used.
    Raises InvalidOutput.
    """
    text = _UNFINISHED_THINKING.sub("", _THINKING.sub("", text))
    faults: list[str] = []
    lacking: list[str] = []
    for candidate in _objects(text):
        lacking += _missing(candidate, output)
        for found in _with_required_fields(candidate, output):
            try:
                return output.model_validate(_values(found, output), by_name=True)
            except ValidationError as error:
                faults.append(_hint(error))
    if faults or lacking:
        raise InvalidOutput((faults or lacking)[0])
    if "{" not in text:
        raise InvalidOutput("it holds no JSON object")
    needed = ", ".join(name for name, field in output.model_fields.items() if field.is_required())
    raise InvalidOutput(f"it was cut off before {needed} ended" if cut_off else f"it holds no object with {needed}")


def without_control_characters(text: str) -> str:
    """`text` without control characters other than line breaks and tabs."""
    return _CONTROL.sub("", text)


def _objects(text: str) -> Iterator[Mapping[str, Any]]:
    """The JSON objects that begin in `text`, outermost first, in order."""
    position, tried = text.find("{"), 0
    while position >= 0 and tried < _MOST_OBJECTS:
        tried += 1
        source, end = _as_strict_json(text, position)
        try:
            value = from_json(source, allow_partial=end is None)
        except ValueError:
            value = None
        if isinstance(value, dict) and value:
            yield value
        position = text.find("{", end if end is not None and isinstance(value, dict) else position + 1)


def _as_strict_json(text: str, start: int) -> tuple[str, int | None]:
    """The object that begins at `start` as strict JSON, and where it ends in `text`; None when it does not end.

    Raw control characters in strings are escaped, and commas before a closing bracket are dropped.
    """
    pieces: list[str] = []
    depth, in_string, escaped = 0, False, False
    for position in range(start, len(text)):
        character = text[position]
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
            elif character < " ":
                character = _ESCAPES.get(character, "")
        elif character == '"':
            in_string = True
        elif character in "{[":
            depth += 1
        elif character in "}]":
            depth -= 1
            while pieces and (pieces[-1].isspace() or pieces[-1] == ","):
                pieces.pop()
        pieces.append(character)
        if depth == 0:
            return "".join(pieces), position + 1
    return "".join(pieces), None


def _with_required_fields(value: Any, output: type[BaseModel], depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """The objects in `value`, itself included, that hold every required field."""
    if depth > _DEEPEST:
        return
    if isinstance(value, Mapping):
        present = {_plain(name): item for name, item in value.items()}
        required = {_plain(name): field for name, field in output.model_fields.items() if field.is_required()}
        if all(name in present and (present[name] is not None or _may_be_null(f)) for name, f in required.items()):
            yield value
        for name, item in value.items():
            if name not in _SCHEMA_KEYWORDS:
                yield from _with_required_fields(item, output, depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from _with_required_fields(item, output, depth + 1)


def _missing(candidate: Mapping[str, Any], output: type[BaseModel]) -> list[str]:
    """The faults of an object that has some of the fields; empty for any other object."""
    values = _values(candidate, output)
    if not values:
        return []
    try:
        output.model_validate(values, by_name=True)
    except ValidationError as error:
        return [_hint(error)]
    return []


def _values(found: Mapping[str, Any], output: type[BaseModel]) -> dict[str, Any]:
    """The values of `found` by field. Optional fields of the wrong type are left out."""
    by_name = {_plain(name): item for name, item in found.items()}
    values: dict[str, Any] = {}
    for name, field in output.model_fields.items():
        value = _fitting(by_name.get(_plain(name)), field.annotation)
        if value is not None or (_plain(name) in by_name and field.is_required() and _may_be_null(field)):
            values[name] = value
    for _ in output.model_fields:
        try:
            output.model_validate(values, by_name=True)
        except ValidationError as error:
            wrong = {str(fault["loc"][0]) for fault in error.errors() if fault["loc"]}
            optional = {name for name in wrong if name in values and not output.model_fields[name].is_required()}
            if not optional:
                break
            values = {name: value for name, value in values.items() if name not in optional}
        else:
            break
    return values


def _may_be_null(field: FieldInfo) -> bool:
    return NoneType in get_args(field.annotation)


def _fitting(value: Any, annotation: Any) -> Any:
    """`value` converted to a field's type where its meaning is clear, else None."""
    arguments = [argument for argument in get_args(annotation) if argument is not NoneType]
    if get_origin(annotation) is list:
        items = value if isinstance(value, list) else [value]
        fitting = [_fitting(item, arguments[0]) for item in items]
        return [item for item in fitting if item is not None]
    if annotation is str:
        return _text(value)
    if float in (annotation, *arguments):
        return _number(value)
    if int in (annotation, *arguments):
        number = _number(value)
        return None if number is None else int(number)
    if isinstance(value, str):
        return without_control_characters(value).strip().lower()
    return value


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return without_control_characters(value)
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list):
        lines = [text for item in value if (text := _text(item))]
        return "\n".join(lines) or None
    if isinstance(value, Mapping):
        sections = [f"{name}: {text}" for name, item in value.items() if (text := _text(item))]
        return "\n".join(sections) or None
    return None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value)
    match = _NUMBER.search(value) if isinstance(value, str) else None
    if match is None:
        return None
    number = float(match.group(0).replace(",", "."))
    return number / 100 if "%" in str(value) else number


def _plain(name: str) -> str:
    """A field's name without case and separators: `upgradedPrompt`, `Upgraded prompt` and `upgraded_prompt` are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _hint(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(str(part) for part in fault['loc'])}: {fault['type']}" for fault in faults[:5])
