"""The message in the stage inboxes: one accepted upgrade, the stages ahead of it and the outputs of those behind it.

All text is redacted: typed placeholders (`<EMAIL_1>`) replace personal values.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Literal

from pydantic import Field

from shared.contracts.contract import Contract, Timestamp

Role = Literal["user", "assistant", "system"]
Origin = Literal["client", "eval"]


class Stage(StrEnum):
    """A stage of the pipeline; the value is the name of its service."""

    SUMMARIZER = "summarizer"
    RAG = "rag"
    UPGRADER = "upgrader"


class ConversationMessage(Contract):
    """A redacted message of the conversation so far."""

    role: Role
    content: str


class TaskOptions(Contract):
    """The client's options, with their defaults."""

    enable_rag: bool = Field(default=True, alias="enableRAG")
    enable_summarization: bool = True
    enable_pii_redaction: bool = Field(default=True, alias="enablePIIRedaction")
    rag_top_k: int = 5
    rag_min_score: float = 0.0
    mode: Literal["auto", "full", "contextual"] = "auto"
    template_name: str = "upgrader"
    prompt_id: str | None = Field(default=None, description="the version of the template that is to be tried")


class SealedText(Contract):
    """Text that only holders of the vault key can read, bound to its tenant and upgrade (AES-GCM)."""

    key_id: str
    nonce: str = Field(description="base64")
    ciphertext: str = Field(description="base64, with the authentication tag")


class ComponentUsage(Contract):
    """What one operation of one component used."""

    component: str
    operation: str
    model: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    embeddings: int = 0
    cost_nano_usd: int = 0
    latency_ms: int = 0
    cache_hit: bool = False

    def plus(self, other: "ComponentUsage | None") -> "ComponentUsage":
        """What both used, under the names of this one."""
        if other is None:
            return self
        names = ("tokens_in", "tokens_out", "embeddings", "cost_nano_usd", "latency_ms")
        return self.model_copy(update={name: getattr(self, name) + getattr(other, name) for name in names})


class UpgradeWarning(Contract):
    """Something the client should know about its result. `code` is one of the warning codes."""

    code: str
    detail: str


class Summary(Contract):
    """The parts of the conversation so far that the rewrite needs."""

    goal: str = ""
    facts: list[str] = []
    constraints: list[str] = []
    decisions: list[str] = []
    tried: list[str] = []

    def with_each_text(self, change: Callable[[str], str]) -> "Summary":
        """The summary with `change` applied to every text. Replacing text in the JSON form could break its quoting."""
        return Summary(
            goal=change(self.goal),
            facts=[change(item) for item in self.facts],
            constraints=[change(item) for item in self.constraints],
            decisions=[change(item) for item in self.decisions],
            tried=[change(item) for item in self.tried],
        )


class RetrievedChunk(Contract):
    """A piece of one of the tenant's documents, redacted. `score` is 0..1."""

    document_id: str
    chunk_id: str
    title: str
    score: float
    text: str


class GiveUpReason(StrEnum):
    """Why a stage gave up."""

    DEADLINE = "deadline_exceeded"
    MODEL = "model_unavailable"
    UNPROCESSABLE = "unprocessable"
    EXPIRED = "expired"


class GivenUp(Contract):
    """A stage gave up: the upgrader ends the upgrade with what there is."""

    stage: str
    reason: GiveUpReason
    detail: str


class StageOutput(Contract):
    """What one stage adds to the upgrade. The stage records it and reuses it on redelivery."""

    stage: Stage
    summary: Summary | None = None
    chunks: list[RetrievedChunk] = []
    sealed_pii: SealedText | None = Field(default=None, description="what this stage adds to the placeholder map")
    placeholder_counts: dict[str, int] = Field(
        default={}, description="highest number in use per kind, after this stage"
    )
    usage: list[ComponentUsage] = []
    warnings: list[UpgradeWarning] = []
    given_up: GivenUp | None = None
    latency_ms: int = 0


class UpgradeTask(Contract):
    """One accepted upgrade in progress. `itinerary` has the stages still ahead, starting with the addressed one."""

    upgrade_id: str
    tenant_id: str
    user_ref: str | None = None
    origin: Origin = "client"
    period: str = Field(description="UTC calendar month in which the upgrade was accepted, YYYY-MM")
    created_at: Timestamp
    deadline: Timestamp
    user_prompt: str
    conversation_history: list[ConversationMessage] = []
    options: TaskOptions = TaskOptions()
    placeholder_counts: dict[str, int] = Field(default={}, description="highest number in use per placeholder kind")
    sealed_pii: SealedText | None = Field(default=None, description="only when redaction is off for the model call")
    reply_to: str | None = Field(default=None, description="id of the gateway replica that waits")
    itinerary: list[Stage]
    outputs: list[StageOutput] = []
    given_up: GivenUp | None = None

    def output_of(self, stage: Stage) -> StageOutput | None:
        """The output of `stage`, or None if it has not run."""
        return next((output for output in self.outputs if output.stage == stage), None)

    def next_stage(self) -> Stage | None:
        """The stage this message is addressed to, or None when the itinerary is done."""
        return self.itinerary[0] if self.itinerary else None

    def advanced(self, output: StageOutput) -> "UpgradeTask":
        """The message for the next stage. After a give-up that is the last stage ahead, which ends the upgrade."""
        ahead = self.itinerary[1:] if output.given_up is None else self.itinerary[1:][-1:]
        counts = dict(self.placeholder_counts)
        for kind, number in output.placeholder_counts.items():
            counts[kind] = max(number, counts.get(kind, 0))
        return self.model_copy(
            update={
                "placeholder_counts": counts,
                "itinerary": ahead,
                "outputs": [*self.outputs, output],
                "given_up": self.given_up or output.given_up,
            }
        )


class SummarizeTask(UpgradeTask):
    """Data of `upgrades.summarize.v1`."""


class RetrieveTask(UpgradeTask):
    """Data of `upgrades.retrieve.v1`."""


class RewriteTask(UpgradeTask):
    """Data of `upgrades.rewrite.v1`."""
