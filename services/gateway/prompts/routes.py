"""The public routes of prompt templates: write, list, read and preview versions, and roll them out and back."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response

from services.gateway.http.bodies import json_body, json_response, read_json
from services.gateway.http.idempotency import IdempotentCreations
from services.gateway.http.pages import DEFAULT_LIMIT, Cursor, Limit, first_page, read_cursor
from services.gateway.http.problems import ProblemError, canonical_id, invalid_field, storage_errors_as_problems
from services.gateway.identity.audit import Action, Audit, author_of
from services.gateway.identity.caller import Caller, Role
from services.gateway.identity.roles import Admin, Viewer, confirmed, forbidden
from services.gateway.prompts.upgrader_client import UpgraderPrompts
from services.gateway.upgrades.preparing import PrepareUpgrade
from shared.contracts.problems import NOT_FOUND
from shared.contracts.prompts import REWRITING, PromptType
from shared.contracts.prompts_http import (
    NewPrompt,
    NewRollback,
    NewRollout,
    PromptPage,
    PromptPreview,
    PromptView,
    RolloutView,
)
from shared.contracts.upgrade_http import UpgradeRequest

_MAX_BODY_BYTES = 4 * 1024 * 1024
PromptId = Annotated[str, Path(alias="id")]


class PromptRoutes:
    """Prompt templates of the caller's workspace, and the platform's."""

    def __init__(
        self, *, prompts: UpgraderPrompts, prepare: PrepareUpgrade, audit: Audit, creations: IdempotentCreations
    ) -> None:
        self._prompts = prompts
        self._prepare = prepare
        self._audit = audit
        self._creations = creations

    async def require(self, caller: Caller, prompt_id: str) -> None:
        """Raises ProblemError unless the caller may try the version: forbidden, or an invalid `options.promptId`."""
        if not caller.role.allows(Role.ADMIN):
            raise forbidden(Role.ADMIN)
        try:
            version = await self._prompts.find(caller.tenant_id, prompt_id)
        except ProblemError as error:
            if error.problem is not NOT_FOUND:
                raise
            raise invalid_field("options.promptId", "There is no such prompt.") from None
        if version.type not in REWRITING:
            raise invalid_field("options.promptId", "It is not a template that rewrites prompts.")

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/api/prompts", tags=["prompts"])
        router.add_api_route(
            "/create",
            self.create,
            methods=["POST"],
            status_code=201,
            response_model=PromptView,
            summary="Create a version of a prompt template",
            openapi_extra=json_body(NewPrompt),
        )
        router.add_api_route("", self.page, methods=["GET"], response_model=PromptPage, summary="List prompt versions")
        router.add_api_route("/{id}", self.read, methods=["GET"], response_model=PromptView, summary="Read a version")
        router.add_api_route(
            "/{id}/preview",
            self.preview,
            methods=["POST"],
            response_model=PromptPreview,
            summary="Preview the messages of a version",
            openapi_extra=json_body(UpgradeRequest),
        )
        router.add_api_route(
            "/{id}/rollout",
            self.rollout,
            methods=["GET"],
            response_model=RolloutView,
            summary="Read a rollout",
        )
        router.add_api_route(
            "/{id}/rollout",
            self.advance,
            methods=["POST"],
            response_model=RolloutView,
            summary="Start a rollout, or take its next step",
            openapi_extra=json_body(NewRollout),
        )
        router.add_api_route(
            "/{id}/rollback",
            self.roll_back,
            methods=["POST"],
            response_model=RolloutView,
            summary="Roll a version back",
            openapi_extra=json_body(NewRollback),
        )
        return router

    async def create(self, request: Request, caller: Admin) -> Response:
        """Stores the next version of a name. It is in development: `options.promptId` of an upgrade tries it."""
        body = await read_json(NewPrompt, request, _MAX_BODY_BYTES)
        caller = await confirmed(request)
        author = author_of(request, caller)

        async def create(prompt_id: str) -> PromptView:
            details = {"name": body.name, "type": body.type.value}
            async with self._audit.change(caller.tenant_id, author, Action.PROMPT_CREATED, prompt_id, details):
                return await self._prompts.create(caller.tenant_id, prompt_id, author.id, body)

        with storage_errors_as_problems():
            answer, headers = await self._creations.create(request, caller.tenant_id, "prompts", body, create)
        location = f"/api/prompts/{PromptView.model_validate_json(answer).id}"
        return json_response(answer, 201, headers | {"Location": location})

    async def page(
        self,
        caller: Viewer,
        name: Annotated[str | None, Query(max_length=64, description="versions of this name only")] = None,
        type_: Annotated[PromptType | None, Query(alias="type", description="versions of this type only")] = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response:
        """The workspace's versions and the platform's, newest first."""
        before = read_cursor(cursor)
        found = await self._prompts.page(caller.tenant_id, name=name, type_=type_, before=before, limit=limit + 1)
        page, next_cursor = first_page(found, limit, lambda version: version.id)
        return json_response(PromptPage(items=page, next_cursor=next_cursor).to_json())

    async def read(self, caller: Viewer, prompt_id: PromptId) -> Response:
        """One version with its text, its stage, and the variables that its type has."""
        return json_response((await self._prompts.find(caller.tenant_id, canonical_id(prompt_id, "prompt"))).to_json())

    async def preview(self, request: Request, caller: Admin, prompt_id: PromptId) -> Response:
        """The messages that a version would send for an upgrade, and their tokens. Nothing is sent or charged."""
        body = await read_json(UpgradeRequest, request, _MAX_BODY_BYTES)
        caller = await confirmed(request)
        prepared = await self._prepare(caller, body, None, None)
        return json_response((await self._prompts.preview(canonical_id(prompt_id, "prompt"), prepared.task)).to_json())

    async def rollout(self, caller: Viewer, prompt_id: PromptId) -> Response:
        """How far a version has come, and the steps of all versions of its name."""
        return json_response(
            (await self._prompts.rollout(caller.tenant_id, canonical_id(prompt_id, "prompt"))).to_json()
        )

    async def advance(self, request: Request, caller: Admin, prompt_id: PromptId) -> Response:
        """From development to 5 % of users; called again to 25 %, 50 % and production."""
        body = await read_json(NewRollout, request)
        caller = await confirmed(request)
        author, id_ = author_of(request, caller), canonical_id(prompt_id, "prompt")
        with storage_errors_as_problems():
            async with self._audit.change(caller.tenant_id, author, Action.PROMPT_ROLLED_OUT, id_):
                rollout = await self._prompts.advance(caller.tenant_id, id_, author.id, body)
        return json_response(rollout.to_json())

    async def roll_back(self, request: Request, caller: Admin, prompt_id: PromptId) -> Response:
        """At once: a canary is taken back, a version in production gives way to the one before it."""
        body = await read_json(NewRollback, request)
        caller = await confirmed(request)
        author, id_ = author_of(request, caller), canonical_id(prompt_id, "prompt")
        with storage_errors_as_problems():
            async with self._audit.change(caller.tenant_id, author, Action.PROMPT_ROLLED_BACK, id_):
                rollout = await self._prompts.roll_back(caller.tenant_id, id_, author.id, body)
        return json_response(rollout.to_json())
