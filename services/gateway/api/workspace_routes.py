"""The public routes of workspaces and their members."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Annotated, cast

from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import Response

from services.gateway.api.authors import author_of
from services.gateway.api.bodies import parse, read_body, require_json
from services.gateway.api.once_only import OnceOnly, scope_of
from services.gateway.api.roles import Viewer, confirmed, forbidden, requires
from services.gateway.api.upgrade_reads import DEFAULT_LIMIT, Cursor, Limit, read_cursor, unavailable, write_cursor
from services.gateway.identity.api_keys import ApiKeys
from services.gateway.identity.audit import Action, Audit
from services.gateway.identity.caller import Caller, Role
from services.gateway.identity.identify import no_such_workspace
from services.gateway.identity.memberships import (
    MemberOf,
    Members,
    MembershipRefused,
    NeedsRole,
    NoSuchMember,
    with_member,
    with_role,
    without_member,
)
from services.gateway.identity.people import Person
from services.gateway.identity.workspaces import (
    NoSuchWorkspace,
    TooBusy,
    Workspace,
    WorkspaceRefused,
    Workspaces,
)
from services.gateway.problems import ProblemError
from shared.contracts.contract import now_utc
from shared.contracts.problems import CONFLICT, FORBIDDEN, NOT_FOUND
from shared.contracts.workspaces_http import (
    ChangedMember,
    MemberPage,
    MemberView,
    NewMember,
    NewWorkspace,
    WorkspacePage,
    WorkspaceView,
)
from shared.storage.documents import StorageUnavailable

MAX_BODY_BYTES = 64 * 1024
ViewerThere = Annotated[Caller, Depends(requires(Role.VIEWER, in_workspace="id"))]
AdminThere = Annotated[Caller, Depends(requires(Role.ADMIN, in_workspace="id"))]
OwnerThere = Annotated[Caller, Depends(requires(Role.OWNER, in_workspace="id"))]
Subject = Annotated[str, Path(alias="subject", description="the `sub` of the person's tokens")]


class WorkspaceRoutes:
    """Workspaces of persons. `forget` is called after every change, so that it counts here at once."""

    def __init__(
        self,
        *,
        workspaces: Workspaces,
        keys: ApiKeys,
        audit: Audit,
        once: OnceOnly,
        issuer: str,
        forget: Callable[[], None],
    ) -> None:
        self._workspaces = workspaces
        self._keys = keys
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
        add("/{id}/members", self.members, methods=["GET"], response_model=MemberPage, summary="List members")
        add(
            "/{id}/members",
            self.add_member,
            methods=["POST"],
            status_code=201,
            response_model=MemberView,
            summary="Add a member",
            openapi_extra=json_body(NewMember.__name__),
        )
        # A subject may have any character in it, slashes too.
        add(
            "/{id}/members/{subject:path}",
            self.change_member,
            methods=["PATCH"],
            response_model=MemberView,
            summary="Change a member's role",
            openapi_extra=json_body(ChangedMember.__name__),
        )
        add(
            "/{id}/members/{subject:path}",
            self.remove_member,
            methods=["DELETE"],
            status_code=204,
            summary="Remove a member",
        )
        return router

    async def create(self, request: Request, caller: Viewer) -> Response:
        """A new workspace that the caller owns. A person owns at most 3, the personal one among them."""
        person = self._person_of(caller)
        body = parse(NewWorkspace, await _json_of(request))
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
                workspaces = [await self._known(caller)]
            else:
                workspaces = await self._workspaces.of_person(self._person_of(caller))
        ahead = [workspace for workspace in workspaces if workspace.id > after]
        items = [_view(workspace, _role_in(workspace, caller)) for workspace in ahead[:limit]]
        next_cursor = write_cursor(items[-1].id) if len(ahead) > limit else None
        return json_answer(WorkspacePage(items=items, next_cursor=next_cursor).to_json())

    async def read(self, caller: ViewerThere) -> Response:
        """One workspace and the caller's role in it."""
        with told():
            workspace = await self._known(caller)
        return json_answer(_view(workspace, caller.role).to_json())

    async def delete(self, request: Request, caller: OwnerThere) -> Response:
        """Nobody gets into it any more, at once; its keys, documents and upgrades are erased. Personal ones stay."""
        author = author_of(request, caller)
        with told():
            async with self._audit.change(caller.tenant_id, author, Action.WORKSPACE_DELETED, caller.tenant_id):
                await self._workspaces.delete(caller.tenant_id)
        self._forget()
        return Response(status_code=204)

    async def members(self, caller: AdminThere, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Response:
        """Who is in the workspace."""
        after = read_cursor(cursor) or ""
        with told():
            workspace = await self._known(caller)
        ahead = [workspace.members[person_id] for person_id in sorted(workspace.members) if person_id > after]
        next_cursor = write_cursor(ahead[limit - 1].person_id) if len(ahead) > limit else None
        items = [_member_view(member) for member in ahead[:limit]]
        return json_answer(MemberPage(items=items, next_cursor=next_cursor).to_json())

    async def add_member(self, request: Request, caller: AdminThere) -> Response:
        """Somebody who has or will have tokens of the identity provider. Only an OWNER makes an OWNER."""
        body = parse(NewMember, await _json_of(request))
        caller = await confirmed(request)
        member = MemberOf(Person.of(self._issuer, body.subject).id, body.subject, Role(body.role), now_utc())

        async def create(_: str) -> MemberView:
            def edit(workspace: Workspace) -> Members:
                return with_member(workspace.members, member, _role_in(workspace, caller))

            await self._revoke_left_keys(caller.tenant_id, member.person_id)
            await self._change(request, caller, Action.MEMBER_ADDED, body.subject, edit, {"role": body.role})
            return _member_view(member)

        with told():
            answer, headers = await self._once.create(request, scope_of(caller), "members", body, create)
        return json_answer(answer, 201, headers)

    async def change_member(self, request: Request, caller: AdminThere, subject: Subject) -> Response:
        """Another role. Only an OWNER makes or changes an OWNER, and the last one stays."""
        role = Role(parse(ChangedMember, await _json_of(request)).role)
        caller = await confirmed(request)
        person = Person.of(self._issuer, subject)

        def edit(workspace: Workspace) -> Members:
            by = _role_in(workspace, caller)
            return with_role(workspace.members, person.id, role, by, home_of=workspace.home_of)

        with told():
            after = await self._change(request, caller, Action.MEMBER_CHANGED, subject, edit, {"role": role.value})
        return json_answer(_member_view(after.members[person.id]).to_json())

    async def remove_member(self, request: Request, caller: AdminThere, subject: Subject) -> Response:
        """The person is out, and so are the API keys they made."""
        person = Person.of(self._issuer, subject)

        def edit(workspace: Workspace) -> Members:
            by = _role_in(workspace, caller)
            return without_member(workspace.members, person.id, by, home_of=workspace.home_of)

        with told():
            await self._change(request, caller, Action.MEMBER_REMOVED, subject, edit, {})
            await self._keys.revoke_of(caller.tenant_id, person.id)
        return Response(status_code=204)

    async def _revoke_left_keys(self, workspace_id: str, person_id: str) -> None:
        """Who comes back does not bring back what they had: a removal that was cut off may have left keys behind."""
        workspace = await self._workspaces.find(workspace_id)
        if workspace is not None and person_id not in workspace.members:
            await self._keys.revoke_of(workspace_id, person_id)

    async def _change(
        self,
        request: Request,
        caller: Caller,
        action: Action,
        subject: str,
        edit: Callable[[Workspace], Members],
        details: dict[str, str],
    ) -> Workspace:
        person = Person.of(self._issuer, subject)
        async with self._audit.change(caller.tenant_id, author_of(request, caller), action, subject, details):
            _, after = await self._workspaces.change_members(caller.tenant_id, edit, person)
        self._forget()
        return after

    async def _known(self, caller: Caller) -> Workspace:
        workspace = await self._workspaces.find(caller.tenant_id)
        if workspace is None:
            raise NoSuchWorkspace
        return workspace

    def _person_of(self, caller: Caller) -> Person:
        if caller.is_key:
            raise ProblemError(FORBIDDEN, "This needs a person: an API key belongs to one workspace and owns none.")
        return Person.of(self._issuer, caller.subject)


def _role_in(workspace: Workspace, caller: Caller) -> Role:
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


async def _json_of(request: Request) -> bytes:
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


def _member_view(member: MemberOf) -> MemberView:
    return MemberView(subject=member.subject, role=member.role.value, created_at=member.created_at)


def json_answer(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def json_body(model: str) -> dict[str, object]:
    """How a route says in the OpenAPI document what its body is."""
    schema = {"schema": {"$ref": f"#/components/schemas/{model}"}}
    return {"requestBody": {"required": True, "content": {"application/json": schema}}}
