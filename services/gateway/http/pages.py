"""Pages of lists: `limit`, the opaque `cursor`, and the answer when a store cannot be read."""

import base64
import binascii
from typing import Annotated

from fastapi import Query

from services.gateway.http.problems import ProblemError
from shared.contracts.contract import is_uuid
from shared.contracts.problems import INVALID_REQUEST, UNAVAILABLE
from shared.contracts.upgrade_http import FieldProblem

DEFAULT_LIMIT = 50


MAX_LIMIT = 200


Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="items in a page")]


Cursor = Annotated[str | None, Query(max_length=200, description="`nextCursor` of the page before")]


def unavailable(detail: str = "Try again.") -> ProblemError:
    return ProblemError(UNAVAILABLE, detail, headers={"Retry-After": "2"})


def write_cursor(last_id: str) -> str:
    """The opaque cursor of a page that ended with that id."""
    return base64.urlsafe_b64encode(last_id.encode()).decode().rstrip("=")


def read_cursor(cursor: str | None) -> str | None:
    """The id that a cursor stands for. Raises ProblemError (invalid_request) for one that no page ever had."""
    if cursor is None:
        return None
    try:
        last_id = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        last_id = ""
    if not is_uuid(last_id):
        problem = FieldProblem(field="cursor", detail="This is not a cursor of this list.")
        raise ProblemError(INVALID_REQUEST, "One or more fields are not valid.", errors=[problem])
    return last_id
