"""Filters, sorts and tables in SQL. A document is one JSON text, indexed by expressions over it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from shared.storage.document_semantics import is_operators
from shared.storage.documents import CollectionSpec, Filter, Index, Sort

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_REFUSED_IN_PATHS = re.compile(r"[\"\\\x00-\x1f]")
AMONG = " IN (SELECT value FROM json_each(?))"  # the parameter is a JSON list
_COMPARISONS = {"$lt": "<", "$lte": "<=", "$gt": ">", "$gte": ">="}

Conditions = list[str]
Parameters = list[Any]


@dataclass(frozen=True)
class Table:
    """The SQL of one collection. Its columns: `id` (the `_id`) and `body` (the document, `_id` included, as JSON)."""

    spec: CollectionSpec

    @property
    def name(self) -> str:
        return f'"{self.spec.name}"'

    def select(self, columns: str, where: str = "") -> str:
        """A SELECT of these columns, with a clause from `where` or one's own."""
        return f"SELECT {columns} FROM {self.name}{where}"  # noqa: S608 - the name is checked in `definition`

    def delete(self, where: str) -> str:
        """A DELETE, with a clause from `where`."""
        return f"DELETE FROM {self.name}{where}"  # noqa: S608

    def update_by_rowid(self) -> str:
        """An UPDATE of one row: its new body, its rowid."""
        return f"UPDATE {self.name} SET body = ? WHERE rowid = ?"  # noqa: S608

    def definition(self) -> list[str]:
        """The statements that make the table and its indexes where they are missing."""
        if not _NAME.fullmatch(self.spec.name):
            raise ValueError(f"a collection cannot be called {self.spec.name}")
        table = f"CREATE TABLE IF NOT EXISTS {self.name} (id TEXT PRIMARY KEY NOT NULL, body TEXT NOT NULL)"
        return [table, *(self._index_definition(index) for index in self.spec.indexes)]

    def violated_index(self, message: str) -> tuple[str, ...] | None:
        """The fields of the unique index that SQLite's message names; None when it is not about one of ours."""
        if message == f"UNIQUE constraint failed: {self.spec.name}.id":
            return ("_id",)
        for index in self.spec.indexes:
            if f"index '{self._index_name(index)}'" in message:
                return index.fields
        return None

    def where(self, filter: Filter) -> tuple[str, Parameters]:
        """A WHERE clause (empty for an empty filter) and its parameters. `ValueError` for what the port lacks."""
        conditions: Conditions = []
        parameters: Parameters = []
        id = "+id" if self._is_served_by_partial_index(filter) else "id"
        for path, condition in filter.items():
            if path.startswith("$"):
                raise ValueError(f"unknown filter operator {path}")
            operators = condition if is_operators(condition) else {"$eq": condition}
            for operator, operand in operators.items():
                if path == "_id" and operator in _COMPARISONS:
                    conditions.append(f"{id} {_COMPARISONS[operator]} ?")
                    parameters.append(_comparable(operator, operand))
                else:
                    self._add(path, operator, operand, conditions, parameters)
        return (" WHERE " + " AND ".join(conditions) if conditions else ""), parameters

    def order_by(self, sort: Sort, filter: Filter) -> str:
        """An ORDER BY clause for what matches `filter`, empty for an empty sort."""
        terms = []
        id = "+id" if self._is_served_by_partial_index(filter) else "id"
        for path, direction in sort:
            if direction not in (1, -1):
                raise ValueError("a sort direction is 1 or -1")
            terms.append(f"{id if path == '_id' else _value(path)} {'ASC' if direction == 1 else 'DESC'}")
        return " ORDER BY " + ", ".join(terms) if terms else ""

    def list_in_index(self, document: Mapping[str, Any]) -> str | None:
        """A path that stands in an index and holds a list or an object in `document`, where there is one."""
        for index in self.spec.indexes:
            for path in index.fields:
                here: Any = document
                for step in path.split("."):
                    here = here.get(step) if isinstance(here, dict) else None
                if isinstance(here, list | dict):
                    return path
        return None

    def _add(self, path: str, operator: str, operand: Any, conditions: Conditions, parameters: Parameters) -> None:
        if operator in ("$eq", "$in"):
            values = [operand] if operator == "$eq" else list(operand)
            conditions.append(self._equals_one_of(path, values, parameters))
        elif operator in ("$ne", "$nin"):
            values = [operand] if operator == "$ne" else list(operand)
            conditions.append(f"NOT coalesce({self._equals_one_of(path, values, parameters)}, 0)")
        elif operator in _COMPARISONS:
            types = "'text'" if isinstance(operand, str) else "'integer', 'real'"
            conditions.append(f"({_value(path)} {_COMPARISONS[operator]} ? AND {_type(path)} IN ({types}))")
            parameters.append(_comparable(operator, operand))
        elif operator == "$exists":
            present = _value(path) if path in self.never_null else _type(path)
            conditions.append(f"{present} IS {'NOT NULL' if operand else 'NULL'}")
        else:
            raise ValueError(f"unknown filter operator {operator}")

    def _equals_one_of(self, path: str, values: Sequence[Any], parameters: Parameters) -> str:
        """SQL for "the value at `path`, or an element of the list there, is one of `values`"."""
        if any(isinstance(value, list | dict) for value in values):
            raise ValueError("a filter compares single values, not lists or objects")
        if path == "_id" or self._is_indexed(path):
            return self._own_value_is(path, values, parameters)
        own = self._own_value_is(path, values, parameters)
        element = self._element_is(path, [value for value in values if value is not None], parameters)
        return f"({own} OR {element})" if element else own

    def _own_value_is(self, path: str, values: Sequence[Any], parameters: Parameters) -> str:
        """Compares in a form that an index over the path serves; JSON's types decide between `true` and 1."""
        terms: Conditions = []
        plain = [value for value in values if value is not None and not isinstance(value, bool)]
        if plain:
            terms.append(_is_one_of(_value(path), plain, parameters))
            if any(not isinstance(value, str) for value in plain):
                terms[-1] = f"({terms[-1]} AND {_type(path)} NOT IN ('true', 'false'))"
        for value in values:
            if value is None:
                terms.append(f"({_value(path)} IS NULL)")
            elif isinstance(value, bool):
                terms.append(f"({_value(path)} = {int(value)} AND {_type(path)} = '{'true' if value else 'false'}')")
        return f"({' OR '.join(terms)})" if terms else "0"

    def _element_is(self, path: str, values: Sequence[Any], parameters: Parameters) -> str:
        if not values:
            return ""
        terms: Conditions = []
        plain = [value for value in values if not isinstance(value, bool)]
        if plain:
            terms.append(f"({_is_one_of('value', plain, parameters)} AND type NOT IN ('true', 'false'))")
        terms += [f"type = '{'true' if value else 'false'}'" for value in values if isinstance(value, bool)]
        among = f"SELECT 1 FROM json_each(body, {_path(path)}) WHERE {' OR '.join(terms)}"  # noqa: S608
        return f"({_type(path)} = 'array' AND EXISTS ({among}))"

    def _is_served_by_partial_index(self, filter: Filter) -> bool:
        """Whether a partial index holds the few that can match: then SQLite, which does not know that they are few,
        must not be led to walk through all ids for the sake of their order."""
        own = filter.get("_id")
        if own is not None and not (is_operators(own) and set(own) <= set(_COMPARISONS)):
            return False
        return any(_implies_presence(filter[path]) for path in self.never_null if path in filter)

    @property
    def never_null(self) -> list[str]:
        """The paths where null counts as not there."""
        return [index.only_when_present for index in self.spec.indexes if index.only_when_present]

    def _is_indexed(self, path: str) -> bool:
        return any(path in index.fields for index in self.spec.indexes)

    def _index_name(self, index: Index) -> str:
        return f"{self.spec.name}_{index.name}".replace(".", "_")

    def _index_definition(self, index: Index) -> str:
        unique = "UNIQUE " if index.unique else ""
        terms = ", ".join(_value(path) for path in index.fields)
        partial = f" WHERE {_value(index.only_when_present)} IS NOT NULL" if index.only_when_present else ""
        return f'CREATE {unique}INDEX IF NOT EXISTS "{self._index_name(index)}" ON {self.name} ({terms}){partial}'


def _implies_presence(condition: Any) -> bool:
    if not is_operators(condition):
        return condition is not None
    return bool(condition.get("$exists")) or not set(condition).isdisjoint(_COMPARISONS)


def _comparable(operator: str, operand: Any) -> Any:
    if not isinstance(operand, str | int | float) or isinstance(operand, bool):
        raise ValueError(f"{operator} takes a number or a string")
    return operand


def _is_one_of(expression: str, values: Sequence[Any], parameters: Parameters) -> str:
    if len(values) == 1:
        parameters.append(values[0])
        return f"{expression} = ?"
    parameters.append(orjson.dumps(list(values)).decode())
    return expression + AMONG


def _path(path: str) -> str:
    """A JSON path as a SQL literal: an index serves an expression only when it is written the same way."""
    if not path or _REFUSED_IN_PATHS.search(path):
        raise ValueError(f"not a field path: {path!r}")
    steps = "".join(f'."{step}"' for step in path.split("."))
    return "'$" + steps.replace("'", "''") + "'"


def _value(path: str) -> str:
    return "id" if path == "_id" else f"json_extract(body, {_path(path)})"


def _type(path: str) -> str:
    return f"json_type(body, {_path(path)})"
