"""The public routes of workspaces, and the answers to what the rules of workspaces refuse."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Annotated, cast

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from services.gateway.http.bodies import json_body, json_response, read_json
from services.gateway.http.idempotency import IdempotentCreations
from services.gateway.http.pages import DEFAULT_LIMIT, Cursor, Limit, first_page, read_cursor
from services.gateway.http.problems import ProblemError, unavailable
from services.gateway.identity.api_keys import MAX_KEYS, TooManyKeys
from services.gateway.identity.audit import Action, Audit, author_of
from services.gateway.identity.caller import Caller, NeedsRole, Role
from services.gateway.identity.identify import no_such_workspace
from services.gateway.identity.memberships import NoSuchMember, WorkspaceRefused
from services.gateway.identity.roles import Viewer, confirmed, forbidden, requires
from services.gateway.identity.workspaces import NoSuchWorkspace, Person, TooBusy, Workspace, Workspaces
from shared.contracts.problems import CONFLICT, FORBIDDEN, NOT_FOUND
from shared.contracts.workspaces_http import NewWorkspace, WorkspacePage, WorkspaceView
from shared.storage.documents import StorageUnavailable

ViewerThere = Annotated[Caller, Depends(requires(Role.VIEWER, in_workspace="id"))]
AdminThere = Annotated[Caller, Depends(requires(Role.ADMIN, in_workspace="id"))]
OwnerThere = Annotated[Caller, Depends(requires(Role.OWNER, in_workspace="id"))]


class WorkspaceRoutes:
    """Workspaces of persons. `forget` empties the cache of identified callers after each change."""

    def __init__(
        self,
        *,
        workspaces: Workspaces,
        audit: Audit,
        creations: IdempotentCreations,
        issuer: str,
        forget: Callable[[], None],
    ) -> None:
        self._workspaces = workspaces
        self._audit = audit
        self._creations = creations
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
            summary="Create a workspace",
            openapi_extra=json_body(NewWorkspace),
        )
        add("", self.page, methods=["GET"], response_model=WorkspacePage, summary="List the caller's workspaces")
        add("/{id}", self.read, methods=["GET"], response_model=WorkspaceView, summary="Read a workspace")
        add("/{id}", self.delete, methods=["DELETE"], status_code=204, summary="Delete a workspace with its content")
        return router

    async def create(self, request: Request, caller: Viewer) -> Response:
        """Creates a workspace that the caller owns. A person owns at most 3, the personal one included."""
        person = self._person_of(caller)
        body = await read_json(NewWorkspace, request)
        caller = await confirmed(request)

        async def create(workspace_id: str) -> WorkspaceView:
            author = author_of(request, caller)
            async with self._audit.change(workspace_id, author, Action.WORKSPACE_CREATED, workspace_id):
                workspace = await self._workspaces.create(workspace_id, body.name, person)
            return _view(workspace, Role.OWNER)

        with domain_errors_as_problems():
            answer, headers = await self._creations.create(request, person.id, "workspaces", body, create)
        self._forget()
        location = f"/api/workspaces/{WorkspaceView.model_validate_json(answer).id}"
        return json_response(answer, 201, headers | {"Location": location})

    async def page(self, caller: Viewer, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Response:
        """All workspaces of a person; for an API key, the workspace that it belongs to."""
        after = read_cursor(cursor) or ""
        with domain_errors_as_problems():
            if caller.is_key:
                workspaces = [await workspace_of(self._workspaces, caller)]
            else:
                workspaces = await self._workspaces.of_person(self._person_of(caller))
        ahead = [workspace for workspace in workspaces if workspace.id > after]
        page, next_cursor = first_page(ahead, limit, lambda workspace: workspace.id)
        items = [_view(workspace, role_in(workspace, caller)) for workspace in page]
        return json_response(WorkspacePage(items=items, next_cursor=next_cursor).to_json())

    async def read(self, caller: ViewerThere) -> Response:
        """One workspace and the caller's role in it."""
        with domain_errors_as_problems():
            workspace = await workspace_of(self._workspaces, caller)
        return json_response(_view(workspace, caller.role).to_json())

    async def delete(self, request: Request, caller: OwnerThere) -> Response:
        """Ends all access at once; keys, documents and upgrades are erased soon after. Not for personal workspaces."""
        author = author_of(request, caller)
        with domain_errors_as_problems():
            async with self._audit.change(caller.tenant_id, author, Action.WORKSPACE_DELETED, caller.tenant_id):
                await self._workspaces.delete(caller.tenant_id)
        self._forget()
        return Response(status_code=204)

    def _person_of(self, caller: Caller) -> Person:
        if caller.is_key:
            raise ProblemError(
                FORBIDDEN, "Only a person can do this: an API key belongs to one workspace and owns none."
            )
        return Person.of(self._issuer, caller.subject)


async def workspace_of(workspaces: Workspaces, caller: Caller) -> Workspace:
    """The caller's workspace. Raises NoSuchWorkspace when it was deleted after the caller was identified."""
    workspace = await workspaces.find(caller.tenant_id)
    if workspace is None:
        raise NoSuchWorkspace
    return workspace


def role_in(workspace: Workspace, caller: Caller) -> Role:
    """The caller's role by the stored members, for the caller itself may be cached. Raises NoSuchWorkspace."""
    if caller.is_key:
        return caller.role
    role = workspace.role_of(cast(str, caller.person_id))
    if role is None:
        raise NoSuchWorkspace
    return role


@contextlib.contextmanager
def domain_errors_as_problems() -> Iterator[None]:
    """Translates exceptions of workspaces, members and keys, and of their store, into ProblemError."""
    try:
        yield
    except WorkspaceRefused as refused:
        raise ProblemError(CONFLICT, str(refused)) from None
    except TooManyKeys:
        raise ProblemError(CONFLICT, f"A workspace has at most {MAX_KEYS} keys.") from None
    except NeedsRole as needed:
        raise forbidden(needed.role) from None
    except NoSuchMember:
        raise ProblemError(NOT_FOUND, "There is no such member.") from None
    except NoSuchWorkspace:
        raise no_such_workspace() from None
    except (TooBusy, StorageUnavailable):
        raise unavailable() from None


def _view(workspace: Workspace, role: Role) -> WorkspaceView:
    return WorkspaceView(
        id=workspace.id,
        name=workspace.name,
        role=role.value,
        personal=workspace.home_of is not None,
        created_at=workspace.created_at,
    )
