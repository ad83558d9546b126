"""HTTP bodies of prompt templates and their rollouts: public ones, and those between gateway and upgrader."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from shared.contracts.contract import Contract, Timestamp
from shared.contracts.prompts import PromptParameters, PromptStage, PromptType
from shared.contracts.upgrade_http import ClientBody

NAME_PATTERN = r"^[a-z][a-z0-9_-]{0,63}$"
MAX_DESCRIPTION = 500
MAX_REASON = 500
MAX_GATES = 20
# Longer ones are refused by the template's own check, which says so; this bounds what is parsed at all.
MAX_TEMPLATE_BYTES = 2_000_000


def _without_controls(text: str) -> str:
    if any(character < " " and character not in "\n\t" for character in text):
        raise ValueError("must not contain control characters")
    return text


PlainText = Annotated[str, AfterValidator(_without_controls)]


class NewPromptParameters(ClientBody):
    """How the model is asked; what is left out is the service's setting."""

    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    max_tokens: int | None = Field(default=None, ge=64, le=32_000)
    model: str | None = Field(default=None, min_length=1, max_length=200)


class NewPrompt(ClientBody):
    """Body of `POST /api/prompts/create`."""

    name: str = Field(pattern=NAME_PATTERN)
    type: PromptType
    template: str = Field(max_length=MAX_TEMPLATE_BYTES)
    description: PlainText = Field(default="", max_length=MAX_DESCRIPTION)
    parameters: NewPromptParameters = NewPromptParameters()


class NewRollout(ClientBody):
    """Body of `POST /api/prompts/{id}/rollout`."""

    minimum_runs: int = Field(default=50, ge=1, le=1_000_000)
    max_error_rate: float = Field(default=0.05, gt=0, le=1, allow_inf_nan=False)
    gates: list[str] = Field(default=[], max_length=MAX_GATES)


class NewRollback(ClientBody):
    """Body of `POST /api/prompts/{id}/rollback`."""

    reason: PlainText = Field(default="rolled back by hand", min_length=1, max_length=MAX_REASON)


class PromptVariable(Contract):
    """A variable that templates of a type may use."""

    name: str
    meaning: str
    required: bool


class PromptView(Contract):
    """One version of a template. `owner` says whose it is: the tenant's own or the platform's."""

    id: str
    name: str
    type: PromptType
    version: int
    stage: PromptStage
    owner: Literal["tenant", "platform"]
    description: str
    template: str
    parameters: PromptParameters
    variables: list[PromptVariable]
    created_at: Timestamp
    created_by: str


class PromptPage(Contract):
    """A page of versions, newest first. `nextCursor` is null on the last one."""

    items: list[PromptView]
    next_cursor: str | None = None


class PromptMessage(Contract):
    """A message as it would be sent to the model."""

    role: Literal["system", "user"]
    content: str


class PromptPreview(Contract):
    """What a version makes of an upgrade's request: nothing is sent or charged. `tokens` is an upper estimate."""

    messages: list[PromptMessage]
    tokens: int


class RolloutStep(Contract):
    """A step of a version's history."""

    at: Timestamp
    prompt_id: str
    version: int
    stage: PromptStage
    reason: str
    by: str


class RolloutView(Contract):
    """Where a version is on its way. `share` is of users, 0 to 1."""

    stage: PromptStage
    share: float
    started_at: Timestamp | None
    minimum_runs: int | None
    max_error_rate: float | None
    gates: list[str]
    history: list[RolloutStep]
