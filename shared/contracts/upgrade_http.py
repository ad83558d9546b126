"""Public HTTP bodies of upgrades: requests, upgrades and errors."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from shared.contracts.contract import Contract, Timestamp, is_uuid
from shared.contracts.upgrade_results import Mode, PromptVersion, UpgradeError, UpgradeStatus
from shared.contracts.upgrade_tasks import Role, UpgradeWarning

MAX_PROMPT_CHARACTERS = 10_000
MAX_HISTORY_MESSAGES = 100
MAX_HISTORY_CHARACTERS = 100_000
TEMPLATES = ("upgrader",)


class ClientBody(Contract):
    """A request body: names are camelCase only, nothing is converted to another type, unknown fields are errors."""

    model_config = ConfigDict(strict=True, validate_by_name=False, extra="forbid")


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


NotBlank = Annotated[str, AfterValidator(_not_blank)]


class HistoryMessage(ClientBody):
    """A message of the conversation so far."""

    role: Role = Field(description="who said it")
    content: str = Field(description="what was said")


def _known_template(name: str) -> str:
    if name not in TEMPLATES:
        raise ValueError("names no template; there is: " + ", ".join(TEMPLATES))
    return name


def _prompt_id(text: str) -> str:
    if not is_uuid(text):
        raise ValueError("is not the id of a prompt")
    return text.lower()


class UpgradeOptions(ClientBody):
    """Which steps an upgrade includes, and their limits."""

    enable_summarization: bool = Field(default=True, description="summarize the conversation, where there is one")
    enable_rag: bool = Field(
        default=True, alias="enableRAG", description="search the workspace's documents and cite them"
    )
    enable_pii_redaction: bool = Field(
        default=True,
        alias="enablePIIRedaction",
        description="false: the model, and only the model, receives personal values and secrets as they were typed",
    )
    rag_top_k: int = Field(default=5, ge=1, le=20, description="most citations")
    rag_min_score: float = Field(
        default=0.0, ge=0.0, le=1.0, allow_inf_nan=False, description="least score of a citation"
    )
    mode: Literal["auto", "full", "contextual"] = Field(
        default="auto", description="`full` for a new topic, `contextual` for a follow-up; `auto`: the model decides"
    )
    template_name: Annotated[str, AfterValidator(_known_template)] = Field(
        default=TEMPLATES[0], description="how the prompt is rewritten: " + ", ".join(TEMPLATES)
    )
    prompt_id: Annotated[str, AfterValidator(_prompt_id)] | None = Field(
        default=None, description="tries this version of a prompt template; needs the role ADMIN"
    )


def _history_not_too_long(history: list[HistoryMessage]) -> list[HistoryMessage]:
    if sum(len(message.content) for message in history) > MAX_HISTORY_CHARACTERS:
        raise ValueError(f"must have at most {MAX_HISTORY_CHARACTERS} characters in all")
    return history


class UpgradeRequest(ClientBody):
    """Body of `POST /api/upgrade`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "userPrompt": "make it shorter and for beginners",
                    "conversationHistory": [
                        {"role": "user", "content": "Write a guide on backing up a PostgreSQL database."},
                        {"role": "assistant", "content": "Here is one with pg_dump and a nightly cron job: ..."},
                    ],
                    "options": {"enableRAG": True, "ragTopK": 3},
                }
            ]
        }
    )

    user_prompt: NotBlank = Field(
        min_length=1, max_length=MAX_PROMPT_CHARACTERS, description="the prompt to upgrade, as it was typed"
    )
    conversation_history: Annotated[list[HistoryMessage], AfterValidator(_history_not_too_long)] = Field(
        default=[],
        max_length=MAX_HISTORY_MESSAGES,
        description=f"the conversation so far, oldest first; {MAX_HISTORY_CHARACTERS} characters in all",
    )
    user_id: str | None = Field(
        default=None, min_length=1, max_length=128, description="the person, in the client's own terms; kept as a hash"
    )
    options: UpgradeOptions = Field(default=UpgradeOptions(), description="what to do, and what not")


class CitationView(Contract):
    """A piece of one of the tenant's documents. `score` is 0..1."""

    document_id: str
    title: str
    score: float
    text: str


class UsageComponentView(Contract):
    """What one operation of a component used."""

    component: str
    operation: str
    tokens_in: int
    tokens_out: int
    embeddings: int
    cost_usd: str
    latency_ms: int
    cache_hit: bool


class UsageView(Contract):
    """What an upgrade used, in total and by operation."""

    tokens_in: int = 0
    tokens_out: int = 0
    embeddings: int = 0
    cost_usd: str = "0.000000000"
    components: list[UsageComponentView] = []


class UpgradeView(Contract):
    """One upgrade. While its status is `accepted`, the fields that are not known yet are null or empty."""

    id: str
    status: UpgradeStatus
    mode: Mode | None
    language: str | None = Field(description="BCP 47")
    user_prompt: str
    user_ref: str | None
    upgraded_prompt: str | None
    reasoning: str
    missing_questions: list[str]
    confidence: float | None
    citations: list[CitationView]
    prompt: PromptVersion | None
    model: str | None
    usage: UsageView
    warnings: list[UpgradeWarning]
    error: UpgradeError | None
    created_at: Timestamp
    completed_at: Timestamp | None
    latency_ms: int | None = Field(description="acceptance to end, milliseconds")

    @model_validator(mode="after")
    def _ended_has_a_time(self) -> Self:
        if (self.status == UpgradeStatus.ACCEPTED) != (self.completed_at is None):
            raise ValueError("completedAt goes with an end")
        return self


class UpgradePage(Contract):
    """A page of upgrades, newest first. `nextCursor` is null on the last one."""

    items: list[UpgradeView]
    next_cursor: str | None


class FieldProblem(Contract):
    """What is wrong with one field of a request."""

    field: str
    detail: str


class ProblemDetails(Contract):
    """An error (RFC 9457). `errors` lists single fields that are wrong."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[FieldProblem] = []
