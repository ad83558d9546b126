"""What a route needs of its caller, declared once: authentication, the check and the documents all follow from it."""

from collections.abc import Iterator
from typing import Annotated, cast

from fastapi import APIRouter, Depends
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.requests import Request

from services.gateway.http.problems import ProblemError
from services.gateway.identity.caller import Caller, Identify, Role
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
        request.state.requirement = self
        return await self.caller_of(request)

    async def caller_of(self, request: Request, *, fresh: bool = False) -> Caller:
        """As a call; with `fresh` the caller as the store knows it now."""
        identify = cast(Identify, request.app.state.identify)
        if self._workspace_parameter is None:
            caller = await identify(request, fresh=fresh)
        else:
            caller = await identify(request, request.path_params[self._workspace_parameter], fresh=fresh)
        if not caller.role.allows(self.role):
            raise forbidden(self.role)
        return caller


def requires(role: Role, *, in_workspace: str | None = None) -> Requirement:
    """The declaration of a route: `caller: Annotated[Caller, Depends(requires(Role.ADMIN))]`, or short `caller: Admin`.

    With `in_workspace`, a parameter of the path, it is the role in that workspace that counts.
    """
    return Requirement(role, in_workspace)


async def confirmed(request: Request) -> Caller:
    """The caller once more, as the store knows it now, by what the route needs.

    Every route asks for it after it has read a body: who was shut out while the body came gets no further. Raises as
    the requirement does.
    """
    requirement: Requirement = request.state.requirement
    return await requirement.caller_of(request, fresh=True)


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
