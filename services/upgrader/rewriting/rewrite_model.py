"""Asks the language model for a rewrite."""

import re
from collections.abc import Sequence
from datetime import timedelta
from functools import cache, partial
from importlib.resources import files
from typing import Literal

import orjson
from pydantic import BaseModel, Field

from services.upgrader.rewriting.rewrite import (
    COMPONENT,
    Repair,
    Rewrite,
    RewriteFailed,
    RewriteModel,
    RewriteRequest,
)
from shared.contracts.problems import WarningCode
from shared.contracts.token_bounds import rewrite_answer_tokens
from shared.contracts.upgrade_results import PromptVersion
from shared.contracts.upgrade_tasks import ConversationMessage, RetrievedChunk, UpgradeTask
from shared.llm.client import ChatMessage, ModelClient
from shared.llm.completions import most_tokens, never
from shared.llm.errors import ModelError, ModelTimeout
from shared.llm.sections import render_sections
from shared.llm.templates import DATA_RULES, render_template
from shared.llm.usage import component_usage, usage_warnings
from shared.privacy.model_view import ModelView
from shared.privacy.sealing import Vault
from shared.service.repair_holds import RepairHolds

OPERATION = "rewrite"
NO_ROOM_TO_REPAIR = "The quota left does not suffice for a second answer of the model."
BUILT_IN = PromptVersion(name="upgrader", version=2, track="stable")
CLOSING = "Rewrite the prompt of the section `prompt`. Do not answer it. The rewritten prompt must differ from it."
_LANGUAGE_TAG = re.compile(r"[a-zA-Z]{2,3}(?:-[A-Za-z0-9]{2,8}){0,3}")


class PromptRewrite(BaseModel):
    """The structured answer that the model is asked for. What decides comes first; only the prompt must be there."""

    mode: Literal["full", "contextual"] | None = Field(default=None, description="whether it goes on with the talk")
    language: str = Field(default="", description="BCP 47 tag of the prompt's language")
    refers_to: str = Field(default="", description="what pronouns and gaps of the prompt stand for, by name")
    upgraded_prompt: str = Field(description="the rewritten prompt")
    reasoning: str = Field(default="", description="what was changed and why, in two sentences")
    missing_questions: list[str] = Field(default=[], description="short questions whose answers change the result")
    confidence: float | None = Field(default=None, description="0 to 1", allow_inf_nan=False)
    cited_documents: list[int] = Field(default=[], description="numbers of the documents that were used")


class LlmRewriteModel(RewriteModel):
    """`RewriteModel` over an OpenAI-compatible API. `version` is that of the platform's template."""

    def __init__(
        self,
        client: ModelClient,
        vault: Vault,
        repair_holds: RepairHolds,
        max_tokens: int,
        temperature: float,
        *,
        version: int = BUILT_IN.version,
    ) -> None:
        self._client = client
        self._vault = vault
        self._repair_holds = repair_holds
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._prompt = BUILT_IN.model_copy(update={"version": version})

    async def rewrite(self, request: RewriteRequest, reserve: timedelta, repair: Repair | None = None) -> Rewrite:
        """The model's answer. Raises RewriteFailed at the latest `reserve` before the task's deadline.

        A second answer is asked for only where the tenant's quota has room for it.
        """
        view = ModelView(request.task, self._vault)
        max_tokens = min(self._max_tokens, _answer_tokens(request.task))
        instructions = instructions_for(request, self._prompt.version)
        messages = [
            ChatMessage(role="system", content=instructions),
            ChatMessage(role="user", content=f"{render_sections(_sections(request, view))}\n\n{CLOSING}"),
        ]
        if repair is not None:
            rejected = orjson.dumps({"upgraded_prompt": view.reveal(repair.rejected)}).decode()
            messages += [
                ChatMessage(role="assistant", content=rejected),
                ChatMessage(role="user", content=f"That could not be used: {view.reveal(repair.hint)}. Try again."),
            ]
            if not await self._repair_holds.take(request.task, most_tokens(messages, PromptRewrite, max_tokens)):
                raise RewriteFailed(WarningCode.REWRITE_NOT_BETTER, NO_ROOM_TO_REPAIR, None)
        try:
            completion = await self._client.complete(
                operation=OPERATION,
                messages=messages,
                output=PromptRewrite,
                max_tokens=max_tokens,
                temperature=self._temperature,
                deadline=request.task.deadline - reserve,
                may_repair=never if repair else partial(self._repair_holds.take, request.task),
            )
        except ModelError as error:
            code = WarningCode.DEADLINE_EXCEEDED if isinstance(error, ModelTimeout) else error.code
            usage = component_usage(COMPONENT, OPERATION, error.usage) if error.usage else None
            raise RewriteFailed(code, error.detail, usage) from error
        answer = completion.value
        return Rewrite(
            upgraded_prompt=view.conceal(answer.upgraded_prompt),
            reasoning=view.conceal(answer.reasoning),
            missing_questions=tuple(view.conceal(question) for question in answer.missing_questions),
            sealed_additions=view.sealed_additions(),
            confidence=answer.confidence,
            cited=tuple(number - 1 for number in answer.cited_documents),
            usage=component_usage(COMPONENT, OPERATION, completion.usage),
            prompt=self._prompt,
            mode=answer.mode,
            language=_language_tag(answer.language),
            instructions=instructions,
            repaired=completion.repaired,
            warnings=tuple(usage_warnings(completion.usage)),
        )


def instructions_for(request: RewriteRequest, version: int = BUILT_IN.version) -> str:
    """The system message: the template's text with the hints of this request."""
    return render_template(
        _template(BUILT_IN.name, version),
        {
            "data_rules": DATA_RULES,
            "contract": contract_text(),
            "mode": request.mode,
            "mode_is_set": request.mode_is_set,
            "language": request.language,
            "has_conversation": bool(request.conversation),
            "has_documents": bool(request.documents),
        },
    )


def _answer_tokens(task: UpgradeTask) -> int:
    return rewrite_answer_tokens(task.user_prompt, [message.content for message in task.conversation_history])


@cache
def contract_text() -> str:
    """The fields of the answer, for the template's `contract`."""
    names = ", ".join(f"`{name}`" for name in PromptRewrite.model_fields)
    return f"Answer with one JSON object that has the fields {names}."


@cache
def _template(name: str, version: int) -> str:
    folder = files("services.upgrader.prompts") / "platform"
    return (folder / f"{name}.v{version}.md").read_text(encoding="utf-8")


def _language_tag(text: str) -> str | None:
    """The model's language where it is a tag (BCP 47), else None."""
    text = text.strip()
    return text if _LANGUAGE_TAG.fullmatch(text) else None


def _sections(request: RewriteRequest, view: ModelView) -> dict[str, str]:
    """What the model is given, least specific first: the prompt stands last, right before the closing line."""
    sections: dict[str, str] = {}
    if request.documents:
        # rag's own placeholders stay: their values are not the prompt's author's to show.
        sections["documents"] = _documents(request.documents)
    if request.summary is not None:
        sections["summary"] = orjson.dumps(request.summary.with_each_text(view.reveal).to_document()).decode()
    if request.conversation:
        sections["conversation"] = view.reveal(_conversation(request.conversation))
    return {**sections, "mode": request.mode, "language": request.language, "prompt": view.reveal(request.prompt)}


def _conversation(messages: Sequence[ConversationMessage]) -> str:
    return "\n\n".join(f"{message.role}: {message.content}" for message in messages)


def _documents(chunks: Sequence[RetrievedChunk]) -> str:
    return "\n\n".join(f"[{number}] {chunk.title}\n{chunk.text}" for number, chunk in enumerate(chunks, start=1))
