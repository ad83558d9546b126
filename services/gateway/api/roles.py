"""What a route needs of its caller, declared once: authentication, the check and the documents all follow from it."""

from collections.abc import Iterator
from typing import Annotated, cast

from fastapi import APIRouter, Depends
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.requests import Request

from services.gateway.identity.caller import Caller, Identify, Role
from services.gateway.problems import ProblemError
from shared.contracts.problems import FORBIDDEN


def forbidden(needed: Role) -> ProblemError:
    """The answer to a caller whose role is not enough."""
    return ProblemError(FORBIDDEN, f"This needs the role {needed}.", extra={"requiredRole": needed.value})


class Requirement:
    """Finds out who calls and lets only a role that is enough pass. A dependency of routes; gives the caller."""

    def __init__(self, role: Role, workspace_parameter: str | None = None) -> None:
        self.role = role
        self._workspace_parameter = workspace_parameter

    async def __call__(self, request: Request) -> Caller:
        """The caller. Raises ProblemError: what identification raises, and forbidden."""
        identify = cast(Identify, request.app.state.identify)
        if self._workspace_parameter is None:
            caller = await identify(request)
        else:
            caller = await identify(request, request.path_params[self._workspace_parameter])
        if not caller.role.allows(self.role):
            raise forbidden(self.role)
        return caller


def requires(role: Role, *, in_workspace: str | None = None) -> Requirement:
    """The declaration of a route: `caller: Annotated[Caller, Depends(requires(Role.ADMIN))]`, or short `caller: Admin`.

    With `in_workspace`, a parameter of the path, it is the role in that workspace that counts.
    """
    return Requirement(role, in_workspace)


Viewer = Annotated[Caller, Depends(requires(Role.VIEWER))]
Member = Annotated[Caller, Depends(requires(Role.MEMBER))]
Admin = Annotated[Caller, Depends(requires(Role.ADMIN))]
Owner = Annotated[Caller, Depends(requires(Role.OWNER))]


def declared_roles(router: APIRouter) -> Iterator[tuple[str, str, Role]]:
    """Path, method in lower case and role of every route that declares one."""
    for route in router.routes:
        if not isinstance(route, APIRoute):
            continue
        requirement = _requirement_of(route.dependant)
        if requirement is not None:
            for method in route.methods or ():
                yield route.path_format, method.lower(), requirement.role


def _requirement_of(dependant: Dependant) -> Requirement | None:
    for dependency in dependant.dependencies:
        if isinstance(dependency.call, Requirement):
            return dependency.call
    return None
