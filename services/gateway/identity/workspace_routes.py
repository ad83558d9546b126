"""The public routes of workspaces."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Annotated, cast

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from services.gateway.http.bodies import parse, read_body, require_json
from services.gateway.http.idempotency import OnceOnly
from services.gateway.http.pages import DEFAULT_LIMIT, Cursor, Limit, read_cursor, unavailable, write_cursor
from services.gateway.http.problems import ProblemError
from services.gateway.identity.audit import Action, Audit, author_of
from services.gateway.identity.caller import Caller, Role
from services.gateway.identity.identify import no_such_workspace
from services.gateway.identity.memberships import (
    MembershipRefused,
    NeedsRole,
    NoSuchMember,
)
from services.gateway.identity.roles import Viewer, confirmed, forbidden, requires
from services.gateway.identity.workspaces import (
    NoSuchWorkspace,
    Person,
    TooBusy,
    Workspace,
    WorkspaceRefused,
    Workspaces,
)
from shared.contracts.problems import CONFLICT, FORBIDDEN, NOT_FOUND
from shared.contracts.workspaces_http import (
    NewWorkspace,
    WorkspacePage,
    WorkspaceView,
)
from shared.storage.documents import StorageUnavailable

MAX_BODY_BYTES = 64 * 1024
ViewerThere = Annotated[Caller, Depends(requires(Role.VIEWER, in_workspace="id"))]
AdminThere = Annotated[Caller, Depends(requires(Role.ADMIN, in_workspace="id"))]
OwnerThere = Annotated[Caller, Depends(requires(Role.OWNER, in_workspace="id"))]


class WorkspaceRoutes:
    """Workspaces of persons. `forget` is called after every change, so that it counts here at once."""

    def __init__(
        self,
        *,
        workspaces: Workspaces,
        audit: Audit,
        once: OnceOnly,
        issuer: str,
        forget: Callable[[], None],
    ) -> None:
        self._workspaces = workspaces
        self._audit = audit
        self._once = once
        self._issuer = issuer
        self._forget = forget

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/api/workspaces", tags=["workspaces"])
        add = router.add_api_route
        add(
            "",
            self.create,
            methods=["POST"],
            status_code=201,
            response_model=WorkspaceView,
            summary="Make a workspace",
            openapi_extra=json_body(NewWorkspace.__name__),
        )
        add("", self.page, methods=["GET"], response_model=WorkspacePage, summary="List the caller's workspaces")
        add("/{id}", self.read, methods=["GET"], response_model=WorkspaceView, summary="Read a workspace")
        add("/{id}", self.delete, methods=["DELETE"], status_code=204, summary="Delete a workspace and all it holds")
        return router

    async def create(self, request: Request, caller: Viewer) -> Response:
        """A new workspace that the caller owns. A person owns at most 3, the personal one among them."""
        person = self._person_of(caller)
        body = parse(NewWorkspace, await json_of(request))
        caller = await confirmed(request)

        async def create(workspace_id: str) -> WorkspaceView:
            author = author_of(request, caller)
            async with self._audit.change(workspace_id, author, Action.WORKSPACE_CREATED, workspace_id):
                workspace = await self._workspaces.create(workspace_id, body.name, person)
            return _view(workspace, Role.OWNER)

        with told():
            answer, headers = await self._once.create(request, person.id, "workspaces", body, create)
        self._forget()
        location = f"/api/workspaces/{WorkspaceView.model_validate_json(answer).id}"
        return json_answer(answer, 201, headers | {"Location": location})

    async def page(self, caller: Viewer, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Response:
        """All workspaces of a person; of an API key the one that it belongs to."""
        after = read_cursor(cursor) or ""
        with told():
            if caller.is_key:
                workspaces = [await workspace_of(self._workspaces, caller)]
            else:
                workspaces = await self._workspaces.of_person(self._person_of(caller))
        ahead = [workspace for workspace in workspaces if workspace.id > after]
        items = [_view(workspace, role_in(workspace, caller)) for workspace in ahead[:limit]]
        next_cursor = write_cursor(items[-1].id) if len(ahead) > limit else None
        return json_answer(WorkspacePage(items=items, next_cursor=next_cursor).to_json())

    async def read(self, caller: ViewerThere) -> Response:
        """One workspace and the caller's role in it."""
        with told():
            workspace = await workspace_of(self._workspaces, caller)
        return json_answer(_view(workspace, caller.role).to_json())

    async def delete(self, request: Request, caller: OwnerThere) -> Response:
        """Nobody gets into it any more, at once; its keys, documents and upgrades are erased. Personal ones stay."""
        author = author_of(request, caller)
        with told():
            async with self._audit.change(caller.tenant_id, author, Action.WORKSPACE_DELETED, caller.tenant_id):
                await self._workspaces.delete(caller.tenant_id)
        self._forget()
        return Response(status_code=204)

    def _person_of(self, caller: Caller) -> Person:
        if caller.is_key:
            raise ProblemError(FORBIDDEN, "This needs a person: an API key belongs to one workspace and owns none.")
        return Person.of(self._issuer, caller.subject)


async def workspace_of(workspaces: Workspaces, caller: Caller) -> Workspace:
    """The caller's workspace. Raises NoSuchWorkspace when it was deleted a moment ago."""
    workspace = await workspaces.find(caller.tenant_id)
    if workspace is None:
        raise NoSuchWorkspace
    return workspace


def role_in(workspace: Workspace, caller: Caller) -> Role:
    """The caller's role as it is now, not as it was a moment ago. Raises NoSuchWorkspace."""
    if caller.is_key:
        return caller.role
    role = workspace.role_of(cast(str, caller.person_id))
    if role is None:
        raise NoSuchWorkspace
    return role


@contextlib.contextmanager
def told() -> Iterator[None]:
    """What a rule refuses, as the problem its client is told."""
    try:
        yield
    except (MembershipRefused, WorkspaceRefused) as refused:
        raise ProblemError(CONFLICT, str(refused)) from None
    except NeedsRole as needed:
        raise forbidden(needed.role) from None
    except NoSuchMember:
        raise ProblemError(NOT_FOUND, "There is no such member.") from None
    except NoSuchWorkspace:
        raise no_such_workspace() from None
    except (TooBusy, StorageUnavailable):
        raise unavailable() from None


async def json_of(request: Request) -> bytes:
    """The body of a request about workspaces, members or keys. Raises ProblemError."""
    require_json(request)
    return await read_body(request, MAX_BODY_BYTES)


def _view(workspace: Workspace, role: Role) -> WorkspaceView:
    return WorkspaceView(
        id=workspace.id,
        name=workspace.name,
        role=role.value,
        personal=workspace.home_of is not None,
        created_at=workspace.created_at,
    )


def json_answer(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def json_body(model: str) -> dict[str, object]:
    """How a route says in the OpenAPI document what its body is."""
    schema = {"schema": {"$ref": f"#/components/schemas/{model}"}}
    return {"requestBody": {"required": True, "content": {"application/json": schema}}}
