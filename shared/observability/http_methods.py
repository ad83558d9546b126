"""The methods of HTTP, and which of them an address knows."""

from starlette.requests import Request
from starlette.routing import Match, Mount

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_READING = ("GET", "HEAD")


def allowed_methods(request: Request) -> str:
    """The value of `Allow` for a request whose method was refused: the methods of all routes of its path.

    The application itself names those of the first route only.
    """
    # Without what the application keeps in a scope about the route that has refused.
    asked = {key: request.scope[key] for key in ("type", "path", "root_path", "headers") if key in request.scope}
    routes = [route for route in request.app.routes if not isinstance(route, Mount)]
    known = [
        method
        for method in METHODS
        if any(route.matches(asked | {"method": method})[0] is Match.FULL for route in routes)
    ]
    # Where there is no route, a folder of files has refused.
    return ", ".join(known or _READING)
