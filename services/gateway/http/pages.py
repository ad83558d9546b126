"""Pagination of lists: the query parameters `limit` and `cursor`, and the opaque cursors of the answers."""

import base64
import binascii
from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Query

from services.gateway.http.problems import invalid_field
from shared.contracts.contract import is_uuid

ItemT = TypeVar("ItemT")

DEFAULT_LIMIT = 50
_MAX_LIMIT = 200

Limit = Annotated[int, Query(ge=1, le=_MAX_LIMIT, description="items in a page")]
Cursor = Annotated[str | None, Query(max_length=200, description="`nextCursor` of the page before")]


def first_page(found: list[ItemT], limit: int, id_of: Callable[[ItemT], str]) -> tuple[list[ItemT], str | None]:
    """The first `limit` of the items found, and the cursor of the next page when there are more."""
    items = found[:limit]
    return items, write_cursor(id_of(items[-1])) if len(found) > limit else None


def write_cursor(last_id: str) -> str:
    """The cursor of a page whose last item has this id."""
    return base64.urlsafe_b64encode(last_id.encode()).decode().rstrip("=")


def read_cursor(cursor: str | None) -> str | None:
    """The id in a cursor. Raises ProblemError (invalid_request) for text that is not a cursor."""
    if cursor is None:
        return None
    try:
        last_id = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        last_id = ""
    if not is_uuid(last_id):
        raise invalid_field("cursor", "This is not a cursor of this list.")
    return last_id
