"""What updates and filters mean, in plain Python: MongoDB's semantics for the operators of the port."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from shared.storage.documents import Document, Filter, Update

_MISSING = object()
_NUMBERS = (int, float)


def apply_update(document: Document, update: Update, *, inserting: bool = False) -> None:
    """Changes `document` in place by an update that `check_update` has passed, which is not asked again per document.

    `$setOnInsert` counts only when `inserting`. `ValueError` for what this document cannot have done to it; it may then
    be half changed: throw it away.
    """
    for operator, changes in update.items():
        if operator == "$setOnInsert" and not inserting:
            continue
        change = _CHANGES[operator]
        for path, operand in changes.items():
            if "." not in path:
                change(document, path, operand)
                continue
            parent, name = _parent_of(document, path, create=operator != "$unset")
            if parent is not None:
                change(parent, name, operand)


def document_for_upsert(filter: Filter, update: Update) -> Document:
    """The new document of an upsert that matched nothing: the filter's equalities, then the (checked) update."""
    document: Document = {}
    for path, condition in filter.items():
        if not is_operators(condition):
            parent, name = _parent_of(document, path, create=True)
            assert parent is not None  # noqa: S101 - it was created
            parent[name] = condition
    apply_update(document, update, inserting=True)
    return document


def check_update(update: Update) -> None:
    """`ValueError` for an unknown operator, a change of `_id`, or two changes that touch the same path."""
    if not update:
        raise ValueError("an update needs at least one operator")
    paths: list[str] = []
    for operator, changes in update.items():
        if operator not in _CHANGES:
            raise ValueError(f"unknown update operator {operator}")
        if operator != "$setOnInsert" and "_id" in changes:
            raise ValueError("an update cannot change _id")
        paths.extend(changes)
    if len(paths) > 1:
        taken = set(paths)
        nested = [path for path in paths if "." in path]
        if len(taken) < len(paths) or any(parent in taken for path in nested for parent in _parents(path)):
            raise ValueError("two changes of one update touch the same path")


def check_each(changes: Sequence[tuple[Filter, Update]]) -> None:
    """`ValueError` unless each update is sound, and each filter has an `_id` that no other has."""
    ids = [filter.get("_id") for filter, _ in changes]
    if not all(isinstance(id, str) for id in ids) or len(set(ids)) < len(ids):
        raise ValueError("each change wants the _id of another document")
    for _, update in changes:
        check_update(update)


def upsert_has_id(filter: Filter, update: Update) -> bool:
    """Whether an upsert with these would know the `_id` of its new document."""
    condition = filter.get("_id", update.get("$setOnInsert", {}).get("_id"))
    return isinstance(condition, str)


def is_operators(condition: object) -> bool:
    """Whether a filter's condition is operators (`{"$lt": 3}`) rather than a value to equal."""
    return isinstance(condition, Mapping) and bool(condition) and all(str(key).startswith("$") for key in condition)


def _parents(path: str) -> Iterator[str]:
    at = path.find(".")
    while at >= 0:
        yield path[:at]
        at = path.find(".", at + 1)


def _parent_of(document: Document, path: str, *, create: bool) -> tuple[Document | None, str]:
    """The object that holds the last name of `path`; made on the way when `create`, else None when it is not there."""
    *way, name = path.split(".")
    here = document
    for step in way:
        below = here.get(step, _MISSING)
        if below is _MISSING:
            if not create:
                return None, name
            below = here[step] = {}
        if not isinstance(below, dict):
            if not create:
                return None, name
            raise ValueError(f"{path}: {step} is no object")
        here = below
    return here, name


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
    if name not in parent or _order(value) > _order(parent[name]):
        parent[name] = value


def _min(parent: Document, name: str, value: Any) -> None:
    if name not in parent or _order(value) < _order(parent[name]):
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


def _is_number(value: object) -> bool:
    # A bool is an int, too, and no number here. Drivers have whole numbers of their own kind, which are ints.
    return type(value) in _NUMBERS or (isinstance(value, int | float) and not isinstance(value, bool))


def _order(value: object) -> tuple[int, Any]:
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


_CHANGES: dict[str, Callable[[Document, str, Any], None]] = {
    "$set": _set,
    "$unset": _unset,
    "$inc": _increment,
    "$max": _max,
    "$min": _min,
    "$push": _push,
    "$setOnInsert": _set,
}


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
            elif operator not in _CONDITIONS:
                raise ValueError(f"unknown filter operator {operator}")
            elif not _CONDITIONS[operator](value, operand):
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


_CONDITIONS: dict[str, Callable[[Any, Any], bool]] = {
    "$ne": lambda value, operand: not _equals(value, operand),
    "$in": lambda value, operand: any(_equals(value, wanted) for wanted in operand),
    "$nin": lambda value, operand: not any(_equals(value, wanted) for wanted in operand),
    "$lt": _compares(lambda value, bound: value < bound),
    "$lte": _compares(lambda value, bound: value <= bound),
    "$gt": _compares(lambda value, bound: value > bound),
    "$gte": _compares(lambda value, bound: value >= bound),
}
