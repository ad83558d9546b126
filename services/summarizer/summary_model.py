"""The summary model over an OpenAI-compatible API: builds the messages and converts the structured answer."""

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from importlib.resources import files

import orjson
from pydantic import BaseModel, Field

from services.summarizer.summarize import COMPONENT, OPERATION, ModelSummary, SummaryFailed, SummaryModel
from shared.contracts.upgrade_tasks import ConversationMessage, Summary, UpgradeTask
from shared.llm.client import ChatMessage, ModelClient
from shared.llm.errors import ModelError
from shared.llm.sections import render_sections
from shared.llm.usage import component_usage, usage_warnings
from shared.privacy.model_view import ModelView
from shared.privacy.sealing import Vault
from shared.service.repair_holds import RepairHolds

INSTRUCTIONS = (files("services.summarizer") / "templates" / "summarizer.md").read_text(encoding="utf-8")


class ConversationSummary(BaseModel):
    """The structured answer requested from the model. Only `goal` is required."""

    goal: str = Field(description="what the user wants to achieve, in one sentence")
    facts: list[str] = Field(default=[], description="facts that were given: names, numbers, versions, files, results")
    constraints: list[str] = Field(default=[], description="limits and wishes that still hold")
    decisions: list[str] = Field(default=[], description="what was decided")
    tried: list[str] = Field(default=[], description="what was already tried or answered")


class LlmSummaryModel(SummaryModel):
    """`SummaryModel` over a `ModelClient`. `max_tokens` limits the length of an answer."""

    def __init__(self, client: ModelClient, vault: Vault, repair_holds: RepairHolds, max_tokens: int) -> None:
        self._client = client
        self._vault = vault
        self._repair_holds = repair_holds
        self._max_tokens = max_tokens

    async def summarize(
        self, task: UpgradeTask, previous: Summary | None, messages: Sequence[ConversationMessage], deadline: datetime
    ) -> ModelSummary:
        view = ModelView(task, self._vault)
        sections = {"conversation": view.reveal("\n\n".join(f"{m.role}: {m.content}" for m in messages))}
        if previous is not None:
            revealed = previous.with_each_text(view.reveal)
            sections["previous_summary"] = orjson.dumps(revealed.to_document()).decode()
        try:
            completion = await self._client.complete(
                operation=OPERATION,
                messages=[
                    ChatMessage(role="system", content=INSTRUCTIONS),
                    ChatMessage(role="user", content=render_sections(sections)),
                ],
                output=ConversationSummary,
                max_tokens=self._max_tokens,
                temperature=0.0,
                deadline=deadline,
                may_repair=partial(self._repair_holds.take, task),
            )
        except ModelError as error:
            usage = component_usage(COMPONENT, OPERATION, error.usage) if error.usage else None
            raise SummaryFailed(error.detail, usage) from error
        summary = Summary(**completion.value.model_dump()).with_each_text(view.conceal)
        return ModelSummary(
            summary=summary,
            usage=component_usage(COMPONENT, OPERATION, completion.usage),
            sealed_additions=view.sealed_additions(),
            placeholder_counts=view.placeholder_counts(),
            warnings=tuple(usage_warnings(completion.usage)),
        )
