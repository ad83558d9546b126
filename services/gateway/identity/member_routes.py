"""The public routes of a workspace's members."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response

from services.gateway.http.bodies import json_body, json_response, read_json
from services.gateway.http.idempotency import IdempotentCreations
from services.gateway.http.pages import DEFAULT_LIMIT, Cursor, Limit, first_page, read_cursor
from services.gateway.identity.api_keys import ApiKeys
from services.gateway.identity.audit import Action, Audit, author_of
from services.gateway.identity.caller import Caller, Role, scope_of
from services.gateway.identity.memberships import Members, Membership, with_member, with_role, without_member
from services.gateway.identity.roles import confirmed
from services.gateway.identity.workspace_routes import AdminThere, domain_errors_as_problems, role_in, workspace_of
from services.gateway.identity.workspaces import Person, Workspace, Workspaces
from shared.contracts.contract import now_utc
from shared.contracts.workspaces_http import ChangedMember, MemberPage, MemberView, NewMember

Subject = Annotated[str, Path(alias="subject", description="the `sub` of the person's tokens")]


class MemberRoutes:
    """Members of a workspace. `forget` empties the cache of identified callers after each change."""

    def __init__(
        self,
        *,
        workspaces: Workspaces,
        keys: ApiKeys,
        audit: Audit,
        creations: IdempotentCreations,
        issuer: str,
        forget: Callable[[], None],
    ) -> None:
        self._workspaces = workspaces
        self._keys = keys
        self._audit = audit
        self._creations = creations
        self._issuer = issuer
        self._forget = forget

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/api/workspaces", tags=["workspaces"])
        add = router.add_api_route
        add("/{id}/members", self.members, methods=["GET"], response_model=MemberPage, summary="List members")
        add(
            "/{id}/members",
            self.add_member,
            methods=["POST"],
            status_code=201,
            response_model=MemberView,
            summary="Add a member",
            openapi_extra=json_body(NewMember),
        )
        # A subject may contain any character, also a slash.
        add(
            "/{id}/members/{subject:path}",
            self.change_member,
            methods=["PATCH"],
            response_model=MemberView,
            summary="Change a member's role",
            openapi_extra=json_body(ChangedMember),
        )
        add(
            "/{id}/members/{subject:path}",
            self.remove_member,
            methods=["DELETE"],
            status_code=204,
            summary="Remove a member",
        )
        return router

    async def members(self, caller: AdminThere, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Response:
        """The members of the workspace and their roles."""
        after = read_cursor(cursor) or ""
        with domain_errors_as_problems():
            workspace = await workspace_of(self._workspaces, caller)
        ahead = [workspace.members[person_id] for person_id in sorted(workspace.members) if person_id > after]
        page, next_cursor = first_page(ahead, limit, lambda member: member.person_id)
        items = [_member_view(member) for member in page]
        return json_response(MemberPage(items=items, next_cursor=next_cursor).to_json())

    async def add_member(self, request: Request, caller: AdminThere) -> Response:
        """Adds a person with present or future tokens of the identity provider. Only an OWNER adds an OWNER."""
        body = await read_json(NewMember, request)
        caller = await confirmed(request)
        member = Membership(Person.of(self._issuer, body.subject).id, body.subject, Role(body.role), now_utc())

        async def create(_: str) -> MemberView:
            def edit(workspace: Workspace) -> Members:
                return with_member(workspace.members, member, role_in(workspace, caller))

            await self._revoke_leftover_keys(caller.tenant_id, member.person_id)
            await self._change(request, caller, Action.MEMBER_ADDED, body.subject, edit, {"role": body.role})
            return _member_view(member)

        with domain_errors_as_problems():
            answer, headers = await self._creations.create(request, scope_of(caller), "members", body, create)
        return json_response(answer, 201, headers)

    async def change_member(self, request: Request, caller: AdminThere, subject: Subject) -> Response:
        """Sets a member's role. Only an OWNER makes or changes an OWNER, and the last OWNER stays one."""
        role = Role((await read_json(ChangedMember, request)).role)
        caller = await confirmed(request)
        person = Person.of(self._issuer, subject)

        def edit(workspace: Workspace) -> Members:
            by = role_in(workspace, caller)
            return with_role(workspace.members, person.id, role, by, home_of=workspace.home_of)

        with domain_errors_as_problems():
            after = await self._change(request, caller, Action.MEMBER_CHANGED, subject, edit, {"role": role.value})
        return json_response(_member_view(after.members[person.id]).to_json())

    async def remove_member(self, request: Request, caller: AdminThere, subject: Subject) -> Response:
        """Removes a member and revokes the API keys that the person answers for."""
        person = Person.of(self._issuer, subject)

        def edit(workspace: Workspace) -> Members:
            by = role_in(workspace, caller)
            return without_member(workspace.members, person.id, by, home_of=workspace.home_of)

        with domain_errors_as_problems():
            await self._change(request, caller, Action.MEMBER_REMOVED, subject, edit, {})
            await self._keys.revoke_of(caller.tenant_id, person.id)
        return Response(status_code=204)

    async def _revoke_leftover_keys(self, workspace_id: str, person_id: str) -> None:
        """Revokes keys that an interrupted removal of this person has left, so that they do not become valid again."""
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
            after = await self._workspaces.change_members(caller.tenant_id, edit, person)
        self._forget()
        return after


def _member_view(member: Membership) -> MemberView:
    return MemberView(subject=member.subject, role=member.role.value, created_at=member.created_at)
