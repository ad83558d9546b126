"""Translates collections, filters and sorts of the document port to SQLite's SQL.

A document is stored as one JSON text; indexes are expressions over it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from shared.storage.document_semantics import is_operators
from shared.storage.documents import CollectionSpec, Filter, Index, Sort

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_REFUSED_IN_PATHS = re.compile(r"[\"\\\x00-\x1f]")
IN_JSON_LIST = " IN (SELECT value FROM json_each(?))"  # the parameter is a JSON list
_COMPARISONS = {"$lt": "<", "$lte": "<=", "$gt": ">", "$gte": ">="}

Conditions = list[str]
Parameters = list[Any]


@dataclass(frozen=True)
class Table:
    """The SQL for one collection. Columns: `id` (the `_id`) and `body` (the document as JSON, including `_id`)."""

    spec: CollectionSpec

    @property
    def name(self) -> str:
        return f'"{self.spec.name}"'

    @property
    def never_null(self) -> list[str]:
        """The paths where null counts as missing."""
        return [index.only_when_present for index in self.spec.indexes if index.only_when_present]

    def select(self, columns: str, where: str = "") -> str:
        """Returns a SELECT of these columns; `where` is the rest of the statement, starting with a space."""
        return f"SELECT {columns} FROM {self.name}{where}"  # noqa: S608 - the name is checked in `definition`

    def delete(self, where: str) -> str:
        """Returns a DELETE; `where` is a clause from `where()` or empty."""
        return f"DELETE FROM {self.name}{where}"  # noqa: S608

    def update_by_rowid(self) -> str:
        """Returns an UPDATE of one row with the parameters body and rowid."""
        return f"UPDATE {self.name} SET body = ? WHERE rowid = ?"  # noqa: S608

    def definition(self) -> list[str]:
        """Returns the statements that create the table and its indexes if they are missing.

        Raises `ValueError` for an invalid collection name.
        """
        if not _NAME.fullmatch(self.spec.name):
            raise ValueError(f"invalid collection name: {self.spec.name}")
        table = f"CREATE TABLE IF NOT EXISTS {self.name} (id TEXT PRIMARY KEY NOT NULL, body TEXT NOT NULL)"
        return [table, *(self._index_definition(index) for index in self.spec.indexes)]

    def violated_index(self, message: str) -> tuple[str, ...] | None:
        """Returns the fields of the unique index named in SQLite's error message, or None."""
        if message == f"UNIQUE constraint failed: {self.spec.name}.id":
            return ("_id",)
        for index in self.spec.indexes:
            if f"index '{self._index_name(index)}'" in message:
                return index.fields
        return None

    def where(self, filter: Filter) -> tuple[str, Parameters]:
        """Returns a WHERE clause (empty for an empty filter) and its parameters.

        Raises `ValueError` for operators and operands that the port does not support.
        """
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
        """Returns an ORDER BY clause for a query with `filter`; empty for an empty sort."""
        terms = []
        id = "+id" if self._is_served_by_partial_index(filter) else "id"
        for path, direction in sort:
            if direction not in (1, -1):
                raise ValueError("a sort direction is 1 or -1")
            terms.append(f"{id if path == '_id' else _value(path)} {'ASC' if direction == 1 else 'DESC'}")
        return " ORDER BY " + ", ".join(terms) if terms else ""

    def list_in_index(self, document: Mapping[str, Any]) -> str | None:
        """Returns an indexed path that holds a list or an object in `document`, or None."""
        for index in self.spec.indexes:
            for path in index.fields:
                value: Any = document
                for step in path.split("."):
                    value = value.get(step) if isinstance(value, dict) else None
                if isinstance(value, list | dict):
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
        """Returns SQL for: the value at `path`, or an element of the list there, is one of `values`."""
        if any(isinstance(value, list | dict) for value in values):
            raise ValueError("a filter compares single values, not lists or objects")
        if path == "_id" or self._is_indexed(path):
            return self._value_is_one_of(path, values, parameters)
        value_is = self._value_is_one_of(path, values, parameters)
        element_is = self._element_is_one_of(path, [value for value in values if value is not None], parameters)
        return f"({value_is} OR {element_is})" if element_is else value_is

    def _value_is_one_of(self, path: str, values: Sequence[Any], parameters: Parameters) -> str:
        """Returns a comparison that an index over the path can serve; JSON types tell `true` from 1."""
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

    def _element_is_one_of(self, path: str, values: Sequence[Any], parameters: Parameters) -> str:
        if not values:
            return ""
        terms: Conditions = []
        plain = [value for value in values if not isinstance(value, bool)]
        if plain:
            terms.append(f"({_is_one_of('value', plain, parameters)} AND type NOT IN ('true', 'false'))")
        terms += [f"type = '{'true' if value else 'false'}'" for value in values if isinstance(value, bool)]
        elements = f"SELECT 1 FROM json_each(body, {_path(path)}) WHERE {' OR '.join(terms)}"  # noqa: S608
        return f"({_type(path)} = 'array' AND EXISTS ({elements}))"

    def _is_served_by_partial_index(self, filter: Filter) -> bool:
        """Whether a partial index holds every possible match.

        SQLite cannot estimate how small a partial index is, and would rather scan all ids in their order. Writing `+id`
        instead of `id` rules that plan out.
        """
        id_condition = filter.get("_id")
        if id_condition is not None and not (is_operators(id_condition) and set(id_condition) <= set(_COMPARISONS)):
            return False
        return any(_implies_presence(filter[path]) for path in self.never_null if path in filter)

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
    return expression + IN_JSON_LIST


def _path(path: str) -> str:
    """Returns the JSON path as a SQL literal. An index serves an expression only if both are written the same way."""
    if not path or _REFUSED_IN_PATHS.search(path):
        raise ValueError(f"invalid field path: {path!r}")
    steps = "".join(f'."{step}"' for step in path.split("."))
    return "'$" + steps.replace("'", "''") + "'"


def _value(path: str) -> str:
    return "id" if path == "_id" else f"json_extract(body, {_path(path)})"


def _type(path: str) -> str:
    return f"json_type(body, {_path(path)})"
