"""Who the author of a change is, by the request that asks for it."""

from starlette.requests import Request

from services.gateway.api.problem_details import request_id_of
from services.gateway.client_address import client_address
from services.gateway.identity.audit import Author
from services.gateway.identity.caller import Caller


def author_of(request: Request, caller: Caller) -> Author:
    """The author of what an authenticated request changes."""
    kind = "key" if caller.is_key else "person"
    name = caller.credential_id if caller.is_key else caller.subject
    return Author(kind, name, client_address(request), request_id_of(request))


def operator_of(request: Request) -> Author:
    """The author of what is changed with the operators' key."""
    return Author("operator", "operator", client_address(request), request_id_of(request))
