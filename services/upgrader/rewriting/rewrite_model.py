"""Asks the language model for a rewrite."""

from collections.abc import Sequence
from datetime import timedelta
from importlib.resources import files

import orjson
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment
from pydantic import BaseModel, Field

from services.upgrader.rewriting.rewrite import COMPONENT, Rewrite, RewriteFailed, RewriteModel, RewriteRequest
from shared.contracts.problems import WarningCode
from shared.contracts.upgrade_results import PromptVersion
from shared.contracts.upgrade_tasks import ConversationMessage, RetrievedChunk
from shared.llm.client import ChatMessage, ModelClient
from shared.llm.errors import ModelError, ModelTimeout
from shared.llm.sections import render_sections
from shared.llm.usage import component_usage, usage_warnings
from shared.privacy.model_view import ModelView
from shared.privacy.sealing import Vault

OPERATION = "rewrite"
BUILT_IN = PromptVersion(name="upgrader", version=1, track="stable")
_TEMPLATE = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False).from_string(
    (files("services.upgrader") / "templates" / "upgrader.md").read_text(encoding="utf-8")
)


class PromptRewrite(BaseModel):
    """The structured answer that the model is asked for."""

    upgraded_prompt: str = Field(description="the rewritten prompt")
    reasoning: str = Field(description="what was changed and why, in two or three sentences")
    missing_questions: list[str] = Field(description="short questions whose answers would change the result")
    confidence: float = Field(description="0 to 1", allow_inf_nan=False)
    cited_documents: list[int] = Field(description="numbers of the documents that were used")


class LlmRewriteModel(RewriteModel):
    """`RewriteModel` over an OpenAI-compatible API."""

    def __init__(self, client: ModelClient, vault: Vault, max_tokens: int, temperature: float) -> None:
        self._client = client
        self._vault = vault
        self._max_tokens = max_tokens
        self._temperature = temperature

    async def rewrite(self, request: RewriteRequest, reserve: timedelta) -> Rewrite:
        """Raises RewriteFailed at the latest `reserve` before the task's deadline."""
        view = ModelView(request.task, self._vault)
        instructions = _TEMPLATE.render(mode=request.mode, language=request.language)
        try:
            completion = await self._client.complete(
                operation=OPERATION,
                messages=[
                    ChatMessage(role="system", content=instructions),
                    ChatMessage(role="user", content=render_sections(_sections(request, view))),
                ],
                output=PromptRewrite,
                max_tokens=self._max_tokens,
                temperature=self._temperature,
                deadline=request.task.deadline - reserve,
            )
        except ModelError as error:
            code = WarningCode.DEADLINE_EXCEEDED if isinstance(error, ModelTimeout) else error.code
            usage = component_usage(COMPONENT, OPERATION, error.usage) if error.usage else None
            raise RewriteFailed(code, error.detail, usage) from error
        answer = completion.value
        upgraded_prompt, reasoning = view.conceal(answer.upgraded_prompt), view.conceal(answer.reasoning)
        missing_questions = tuple(view.conceal(question) for question in answer.missing_questions)
        return Rewrite(
            upgraded_prompt=upgraded_prompt,
            reasoning=reasoning,
            missing_questions=missing_questions,
            sealed_additions=view.sealed_additions(),
            confidence=min(1.0, max(0.0, answer.confidence)),
            cited=tuple(number - 1 for number in answer.cited_documents),
            usage=component_usage(COMPONENT, OPERATION, completion.usage),
            prompt=BUILT_IN,
            warnings=tuple(usage_warnings(completion.usage)),
        )


def _sections(request: RewriteRequest, view: ModelView) -> dict[str, str]:
    sections = {"mode": request.mode, "language": request.language, "prompt": view.reveal(request.prompt)}
    if request.summary is not None:
        sections["summary"] = orjson.dumps(request.summary.with_each_text(view.reveal).to_document()).decode()
    if request.conversation:
        sections["conversation"] = view.reveal(_conversation(request.conversation))
    if request.documents:
        # rag's own placeholders stay: their values are not the prompt's author's to show.
        sections["documents"] = _documents(request.documents)
    return sections


def _conversation(messages: Sequence[ConversationMessage]) -> str:
    return "\n\n".join(f"{message.role}: {message.content}" for message in messages)


def _documents(chunks: Sequence[RetrievedChunk]) -> str:
    return "\n\n".join(f"[{number}] {chunk.title}\n{chunk.text}" for number, chunk in enumerate(chunks, start=1))
