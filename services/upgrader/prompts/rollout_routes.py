"""Internal HTTP of rollouts, for the gateway: start one or take its next step, read it, and roll back."""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Response

from services.upgrader.prompts.library import NoSuchPrompt, PromptLibrary, Version
from services.upgrader.prompts.rollouts import (
    PromptLine,
    PromptRef,
    RolloutRefused,
    promote,
    roll_back,
    start_rollout,
)
from services.upgrader.prompts.routes import TenantId
from shared.contracts.contract import now_utc
from shared.contracts.problems import CONFLICT, INVALID_REQUEST, NOT_FOUND
from shared.contracts.prompts_http import NewRollback, NewRollout, RolloutView
from shared.contracts.upgrade_http import FieldProblem
from shared.service.problems import problem_response, unavailable_response
from shared.storage.documents import StorageUnavailable

_BY_HAND = "promoted by hand"


class RolloutRoutes:
    """The routes under `/internal/prompts/{id}`. A tenant rolls out its own versions only."""

    def __init__(self, library: PromptLibrary) -> None:
        self._library = library

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/internal/prompts/{prompt_id}")
        router.add_api_route("/rollout", self.read, methods=["GET"])
        router.add_api_route("/rollout", self.advance, methods=["POST"])
        router.add_api_route("/rollback", self.roll_back, methods=["POST"])
        return router

    async def read(self, tenant_id: TenantId, prompt_id: str) -> Response:
        async def line_of(version: Version) -> PromptLine:
            return await self._library.line(version.tenant_id, version.name)

        return await self._answer(tenant_id, prompt_id, line_of)

    async def advance(self, tenant_id: TenantId, prompt_id: str, by: str, body: NewRollout) -> Response:
        """Starts the rollout; of a version on its way, takes the next step."""
        if body.gates:
            return problem_response(
                INVALID_REQUEST, errors=[FieldProblem(field="gates.0", detail="There is no such dataset.")]
            )

        def step(version: Version, line: PromptLine) -> PromptLine:
            if line.rollout is not None and line.rollout.prompt_id == version.prompt_id:
                return promote(line, _BY_HAND, by, now_utc())
            return start_rollout(
                line,
                PromptRef(prompt_id=version.prompt_id, version=version.version),
                minimum_runs=body.minimum_runs,
                max_error_rate=body.max_error_rate,
                gates=[],
                by=by,
                now=now_utc(),
            )

        return await self._change(tenant_id, prompt_id, step)

    async def roll_back(self, tenant_id: TenantId, prompt_id: str, by: str, body: NewRollback) -> Response:
        def step(version: Version, line: PromptLine) -> PromptLine:
            return roll_back(line, version.prompt_id, body.reason, by, now_utc())

        return await self._change(tenant_id, prompt_id, step)

    async def _change(
        self, tenant_id: str, prompt_id: str, step: Callable[[Version, PromptLine], PromptLine]
    ) -> Response:
        async def changed(version: Version) -> PromptLine:
            if version.tenant_id is None:
                raise RolloutRefused("The platform's versions cannot be rolled out or back by a workspace.")
            return await self._library.step(tenant_id, version.name, lambda line: step(version, line))

        return await self._answer(tenant_id, prompt_id, changed)

    async def _answer(
        self, tenant_id: str, prompt_id: str, line_of: Callable[[Version], Awaitable[PromptLine]]
    ) -> Response:
        try:
            line = await line_of(await self._library.version(tenant_id, prompt_id))
        except NoSuchPrompt:
            return problem_response(NOT_FOUND)
        except RolloutRefused as refused:
            return problem_response(CONFLICT, str(refused))
        except StorageUnavailable:
            return unavailable_response()
        return Response(rollout_view(line, prompt_id).to_json(), media_type="application/json")


def rollout_view(line: PromptLine, prompt_id: str) -> RolloutView:
    """Where a version is on its way, and the steps of all versions of its name, oldest first."""
    stage = line.stage_of(prompt_id)
    rollout = next((r for r in (line.rollout, line.last_rollout) if r is not None and r.prompt_id == prompt_id), None)
    return RolloutView(
        stage=stage,
        share=stage.share,
        started_at=rollout.started_at if rollout else None,
        minimum_runs=rollout.minimum_runs if rollout else None,
        max_error_rate=rollout.max_error_rate if rollout else None,
        gates=rollout.gates if rollout else [],
        history=line.history,
    )
