"""Whether a document matches a filter, in plain Python: the same answers that the stores give."""

from collections.abc import Callable, Collection
from typing import Any

from shared.storage.document_updates import is_operators
from shared.storage.documents import Document, Filter

_MISSING = object()


def matches(document: Document, filter: Filter, never_null: Collection[str] = ()) -> bool:
    """`never_null` are the paths of strings where null counts as not there. `ValueError` for an unknown operator."""
    for path, condition in filter.items():
        value = _value_at(document, path)
        if not is_operators(condition):
            if not _equals(value, condition):
                return False
            continue
        for operator, operand in condition.items():
            if operator == "$exists":
                there = value is not _MISSING and not (value is None and path in never_null)
                if there != bool(operand):
                    return False
            elif operator not in _OPERATORS:
                raise ValueError(f"unknown filter operator {operator}")
            elif not _OPERATORS[operator](value, operand):
                return False
    return True


def _value_at(document: Document, path: str) -> Any:
    here: Any = document
    for step in path.split("."):
        if not isinstance(here, dict) or step not in here:
            return _MISSING
        here = here[step]
    return here


def _equals(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list | dict):
        raise ValueError("a filter compares single values, not lists or objects")
    if wanted is None:
        return value is None or value is _MISSING
    if isinstance(value, list):
        return any(_same(element, wanted) for element in value)
    return _same(value, wanted)


def _same(value: Any, wanted: Any) -> bool:
    """Python takes `True` for 1; documents do not."""
    return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)


def _compares(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """A range matches values of its own type only."""

    def check(value: Any, bound: Any) -> bool:
        if isinstance(bound, str):
            return isinstance(value, str) and compare(value, bound)
        if isinstance(bound, bool) or not isinstance(bound, int | float):
            raise ValueError("a range has numbers or strings for bounds")
        return isinstance(value, int | float) and not isinstance(value, bool) and compare(value, bound)

    return check


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "$ne": lambda value, operand: not _equals(value, operand),
    "$in": lambda value, operand: any(_equals(value, wanted) for wanted in operand),
    "$nin": lambda value, operand: not any(_equals(value, wanted) for wanted in operand),
    "$lt": _compares(lambda value, bound: value < bound),
    "$lte": _compares(lambda value, bound: value <= bound),
    "$gt": _compares(lambda value, bound: value > bound),
    "$gte": _compares(lambda value, bound: value >= bound),
}
