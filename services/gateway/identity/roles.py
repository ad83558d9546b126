"""Lets a route declare the role it requires. Authentication, the check and the OpenAPI document follow from that."""

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
    """The problem of a caller with too low a role."""
    return ProblemError(FORBIDDEN, f"This needs the role {needed}.", extra={"requiredRole": needed.value})


class Requirement:
    """FastAPI dependency that identifies the caller, checks the role and returns the caller.

    The application's state holds the Identify as `identify`.
    """

    def __init__(self, role: Role, workspace_parameter: str | None = None) -> None:
        self.role = role
        self._workspace_parameter = workspace_parameter

    async def __call__(self, request: Request) -> Caller:
        """The caller. Raises ProblemError: what Identify raises, and forbidden."""
        request.state.requirement = self
        return await self.caller_of(request)

    async def caller_of(self, request: Request, *, fresh: bool = False) -> Caller:
        """As a call; with `fresh` without the cache of identified callers."""
        identify = cast(Identify, request.app.state.identify)
        if self._workspace_parameter is None:
            caller = await identify(request, fresh=fresh)
        else:
            caller = await identify(request, request.path_params[self._workspace_parameter], fresh=fresh)
        if not caller.role.allows(self.role):
            raise forbidden(self.role)
        return caller


def requires(role: Role, *, in_workspace: str | None = None) -> Requirement:
    """The requirement of a route: `caller: Annotated[Caller, Depends(requires(Role.ADMIN))]`, or short `caller: Admin`.

    `in_workspace` names the path parameter of the workspace in which the role counts.
    """
    return Requirement(role, in_workspace)


async def confirmed(request: Request) -> Caller:
    """The caller, identified again by the route's requirement and without the cache. Raises as the requirement does.

    Every route calls this after reading a body: a caller may have lost access while the body arrived.
    """
    requirement: Requirement = request.state.requirement
    return await requirement.caller_of(request, fresh=True)


Viewer = Annotated[Caller, Depends(requires(Role.VIEWER))]
Member = Annotated[Caller, Depends(requires(Role.MEMBER))]
Admin = Annotated[Caller, Depends(requires(Role.ADMIN))]


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
