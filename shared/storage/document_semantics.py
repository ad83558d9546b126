"""Evaluates the document port's filters and updates in Python, with MongoDB's semantics.

The SQLite adapter applies updates with it; both adapters validate requests with it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from shared.storage.documents import Document, Filter, Update

_MISSING = object()
_NUMBERS = (int, float)


def check_update(update: Update) -> None:
    """Raises `ValueError` for an unknown operator, a change of `_id`, or two changes of overlapping paths."""
    if not update:
        raise ValueError("an update needs at least one operator")
    paths: list[str] = []
    for operator, changes in update.items():
        if operator not in _UPDATE_OPERATORS:
            raise ValueError(f"unknown update operator {operator}")
        if operator != "$setOnInsert" and "_id" in changes:
            raise ValueError("an update cannot change _id")
        paths.extend(changes)
    if len(paths) > 1:
        unique = set(paths)
        nested = [path for path in paths if "." in path]
        if len(unique) < len(paths) or any(parent in unique for path in nested for parent in _parents(path)):
            raise ValueError("two changes of one update touch the same path")


def check_each(changes: Sequence[tuple[Filter, Update]]) -> None:
    """Raises `ValueError` unless every update is valid and every filter has its own `_id`."""
    ids = [filter.get("_id") for filter, _ in changes]
    if not all(isinstance(id, str) for id in ids) or len(set(ids)) < len(ids):
        raise ValueError("every change needs the _id of a different document")
    for _, update in changes:
        check_update(update)


def check_upsert(filter: Filter, update: Update) -> None:
    """Raises `ValueError` if an upsert has no `_id` for its new document."""
    if not isinstance(filter.get("_id", update.get("$setOnInsert", {}).get("_id")), str):
        raise ValueError("an upsert needs the _id of its document")


def is_operators(condition: object) -> bool:
    """Whether a filter's condition holds operators (`{"$lt": 3}`) rather than a value to compare with."""
    return isinstance(condition, Mapping) and bool(condition) and all(str(key).startswith("$") for key in condition)


def matches(document: Document, filter: Filter, never_null: Collection[str] = ()) -> bool:
    """Whether `document` matches `filter`. Raises `ValueError` for an unknown operator.

    `never_null` are the paths where null counts as missing.
    """
    for path, condition in filter.items():
        value = _value_at(document, path)
        if not is_operators(condition):
            if not _equals(value, condition):
                return False
            continue
        for operator, operand in condition.items():
            if operator == "$exists":
                exists = value is not _MISSING and not (value is None and path in never_null)
                if exists != bool(operand):
                    return False
            elif operator not in _FILTER_OPERATORS:
                raise ValueError(f"unknown filter operator {operator}")
            elif not _FILTER_OPERATORS[operator](value, operand):
                return False
    return True


def apply_update(document: Document, update: Update, *, inserting: bool = False) -> None:
    """Applies an update to `document` in place. The update must have passed `check_update`.

    `$setOnInsert` applies only when `inserting`. Raises `ValueError` if a change does not fit the document's values,
    which may leave `document` partly changed: discard it.
    """
    for operator, changes in update.items():
        if operator == "$setOnInsert" and not inserting:
            continue
        change = _UPDATE_OPERATORS[operator]
        for path, operand in changes.items():
            if "." not in path:
                change(document, path, operand)
                continue
            parent, name = _parent_of(document, path, create=operator != "$unset")
            if parent is not None:
                change(parent, name, operand)


def document_for_upsert(filter: Filter, update: Update) -> Document:
    """Builds the document that an upsert inserts: the filter's equalities, then the (validated) update."""
    document: Document = {}
    for path, condition in filter.items():
        if not is_operators(condition):
            parent, name = _parent_of(document, path, create=True)
            assert parent is not None  # noqa: S101 - guaranteed by create=True
            parent[name] = condition
    apply_update(document, update, inserting=True)
    return document


def _parents(path: str) -> Iterator[str]:
    at = path.find(".")
    while at >= 0:
        yield path[:at]
        at = path.find(".", at + 1)


def _parent_of(document: Document, path: str, *, create: bool) -> tuple[Document | None, str]:
    """Returns the object that holds the last name of `path`, and that name.

    Missing objects on the way are created if `create` is set; otherwise the object is None.
    """
    *steps, name = path.split(".")
    parent = document
    for step in steps:
        child = parent.get(step, _MISSING)
        if child is _MISSING:
            if not create:
                return None, name
            child = parent[step] = {}
        if not isinstance(child, dict):
            if not create:
                return None, name
            raise ValueError(f"{path}: {step} is not an object")
        parent = child
    return parent, name


def _value_at(document: Document, path: str) -> Any:
    value: Any = document
    for step in path.split("."):
        if not isinstance(value, dict) or step not in value:
            return _MISSING
        value = value[step]
    return value


def _set(parent: Document, name: str, value: Any) -> None:
    parent[name] = value


def _unset(parent: Document, name: str, _: Any) -> None:
    parent.pop(name, None)


def _increment(parent: Document, name: str, by: Any) -> None:
    before = parent.get(name, 0)
    if not _is_number(before) or not _is_number(by):
        raise ValueError(f"$inc of {name}: not a number")
    parent[name] = before + by


def _max(parent: Document, name: str, value: Any) -> None:
    if name not in parent or _sort_key(value) > _sort_key(parent[name]):
        parent[name] = value


def _min(parent: Document, name: str, value: Any) -> None:
    if name not in parent or _sort_key(value) < _sort_key(parent[name]):
        parent[name] = value


def _push(parent: Document, name: str, value: Any) -> None:
    items = parent.get(name, _MISSING)
    if items is _MISSING:
        items = []
    if not isinstance(items, list):
        raise ValueError(f"$push to {name}: not a list")
    if not is_operators(value):
        parent[name] = [*items, value]
        return
    if not set(value) <= {"$each", "$slice"} or "$each" not in value:
        raise ValueError("$push takes a value, or $each with or without $slice")
    items = [*items, *value["$each"]]
    keep = value.get("$slice")
    if keep is not None:
        items = items[:keep] if keep >= 0 else items[keep:]
    parent[name] = items


_UPDATE_OPERATORS: dict[str, Callable[[Document, str, Any], None]] = {
    "$set": _set,
    "$unset": _unset,
    "$inc": _increment,
    "$max": _max,
    "$min": _min,
    "$push": _push,
    "$setOnInsert": _set,
}


def _is_number(value: object) -> bool:
    # A bool is an int in Python but not a number in a document; drivers may return subclasses of int.
    return type(value) in _NUMBERS or (isinstance(value, int | float) and not isinstance(value, bool))


def _sort_key(value: object) -> tuple[int, Any]:
    """Sorts null before numbers before strings before booleans, as MongoDB does."""
    if value is None:
        return 0, 0
    if isinstance(value, bool):
        return 3, value
    if isinstance(value, int | float):
        return 1, value
    if isinstance(value, str):
        return 2, value
    raise ValueError("$max and $min compare numbers, strings, booleans and null")


def _equals(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list | dict):
        raise ValueError("a filter compares single values, not lists or objects")
    if wanted is None:
        return value is None or value is _MISSING
    if isinstance(value, list):
        return any(_is_same_value(element, wanted) for element in value)
    return _is_same_value(value, wanted)


def _is_same_value(value: Any, wanted: Any) -> bool:
    # Python treats True as equal to 1; documents do not.
    return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)


def _in_range(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """Restricts a comparison to values of the bound's type."""

    def check(value: Any, bound: Any) -> bool:
        if isinstance(bound, str):
            return isinstance(value, str) and compare(value, bound)
        if isinstance(bound, bool) or not isinstance(bound, int | float):
            raise ValueError("the bounds of a range are numbers or strings")
        return isinstance(value, int | float) and not isinstance(value, bool) and compare(value, bound)

    return check


_FILTER_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "$ne": lambda value, operand: not _equals(value, operand),
    "$in": lambda value, operand: any(_equals(value, wanted) for wanted in operand),
    "$nin": lambda value, operand: not any(_equals(value, wanted) for wanted in operand),
    "$lt": _in_range(lambda value, bound: value < bound),
    "$lte": _in_range(lambda value, bound: value <= bound),
    "$gt": _in_range(lambda value, bound: value > bound),
    "$gte": _in_range(lambda value, bound: value >= bound),
}
