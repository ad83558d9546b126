"""Internal HTTP of prompt templates, for the gateway: write a version, list and read versions, preview one."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from services.upgrader.prompts.choosing import template_of
from services.upgrader.prompts.library import NewVersion, NoSuchPrompt, PromptLibrary, PromptRefused, Version
from services.upgrader.prompts.platform_templates import PromptTemplate
from services.upgrader.prompts.rollouts import PromptLine
from shared.contracts.problems import INVALID_REQUEST, NOT_FOUND
from shared.contracts.prompts import REWRITING, PromptParameters, PromptType
from shared.contracts.prompts_http import NewPrompt, PromptPage, PromptPreview, PromptVariable, PromptView
from shared.contracts.upgrade_http import FieldProblem
from shared.contracts.upgrade_tasks import UpgradeTask
from shared.llm.templates import VARIABLES, TemplateRefused
from shared.service.problems import problem_response, unavailable_response
from shared.storage.documents import StorageUnavailable

Preview = Callable[[UpgradeTask, PromptTemplate], PromptPreview]
TenantId = Annotated[str, Query(alias="tenantId")]


class PromptRoutes:
    """The routes under `/internal/prompts`. The caller names the tenant, and reads nothing of another."""

    def __init__(self, library: PromptLibrary, preview_of: Preview) -> None:
        self._library = library
        self._preview_of = preview_of

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/internal/prompts")
        router.add_api_route("", self.create, methods=["POST"])
        router.add_api_route("", self.page, methods=["GET"])
        router.add_api_route("/{prompt_id}", self.read, methods=["GET"])
        router.add_api_route("/{prompt_id}/preview", self.preview, methods=["POST"])
        return router

    async def create(
        self, tenant_id: TenantId, prompt_id: Annotated[str, Query(alias="promptId")], by: str, request: Request
    ) -> Response:
        # From JSON, since the model is strict: FastAPI would pass it Python values.
        body = NewPrompt.model_validate_json(await request.body())
        parameters = PromptParameters.model_validate(body.parameters.model_dump())
        new = NewVersion(body.name, body.type, body.template, body.description, parameters, by)
        try:
            version, line = await self._library.create(tenant_id, new, prompt_id)
        except TemplateRefused as refused:
            return _invalid(FieldProblem(field="template", detail=str(refused)))
        except PromptRefused as refused:
            return _invalid(FieldProblem(field=refused.field, detail=refused.detail))
        except StorageUnavailable:
            return unavailable_response()
        return Response(view_of(version, line).to_json(), status_code=201, media_type="application/json")

    async def page(
        self,
        tenant_id: TenantId,
        name: str | None = None,
        type_: Annotated[PromptType | None, Query(alias="type")] = None,
        before: str | None = None,
        limit: Annotated[int, Query(ge=1, le=201)] = 50,
    ) -> Response:
        try:
            found = await self._library.page(tenant_id, name=name, type_=type_, before=before, limit=limit)
            keys = {(version.tenant_id, version.name) for version in found}
            lines = {key: await self._library.line(*key) for key in keys}
        except StorageUnavailable:
            return unavailable_response()
        items = [view_of(version, lines[version.tenant_id, version.name]) for version in found]
        return Response(PromptPage(items=items).to_json(), media_type="application/json")

    async def read(self, tenant_id: TenantId, prompt_id: str) -> Response:
        try:
            version = await self._library.version(tenant_id, prompt_id)
            view = view_of(version, await self._library.line(version.tenant_id, version.name))
        except NoSuchPrompt:
            return problem_response(NOT_FOUND)
        except StorageUnavailable:
            return unavailable_response()
        return Response(view.to_json(), media_type="application/json")

    async def preview(self, tenant_id: TenantId, prompt_id: str, task: UpgradeTask) -> Response:
        try:
            version = await self._library.version(tenant_id, prompt_id)
        except NoSuchPrompt:
            return problem_response(NOT_FOUND)
        except StorageUnavailable:
            return unavailable_response()
        if task.tenant_id != tenant_id or version.type not in REWRITING:
            return _invalid(FieldProblem(field="id", detail="only templates that rewrite prompts have a preview"))
        try:
            shown = self._preview_of(task, template_of(version, "pinned"))
        except TemplateRefused as refused:
            return _invalid(FieldProblem(field="template", detail=str(refused)))
        return Response(shown.to_json(), media_type="application/json")


def view_of(version: Version, line: PromptLine) -> PromptView:
    """A version as its tenant sees it."""
    return PromptView(
        id=version.prompt_id,
        name=version.name,
        type=version.type,
        version=version.version,
        stage=line.stage_of(version.prompt_id),
        owner="platform" if version.tenant_id is None else "tenant",
        description=version.description,
        template=version.template,
        parameters=version.parameters,
        variables=[
            PromptVariable(name=item.name, meaning=item.meaning, required=item.required)
            for item in VARIABLES[version.type]
        ],
        created_at=version.created_at,
        created_by=version.created_by,
    )


def _invalid(problem: FieldProblem) -> Response:
    return problem_response(INVALID_REQUEST, errors=[problem])
