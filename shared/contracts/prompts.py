"""Prompt templates: their types and stages, the event that tells of a change, and who is on a canary."""

import hashlib
from enum import StrEnum

from pydantic import Field

from shared.contracts.contract import Contract, Timestamp


class PromptType(StrEnum):
    """What a template is for. `CUSTOM` templates rewrite prompts, as `UPGRADER` ones do, under a name of their own."""

    SUMMARIZER = "SUMMARIZER"
    UPGRADER = "UPGRADER"
    RAG_QUERY = "RAG_QUERY"
    CUSTOM = "CUSTOM"


REWRITING = frozenset({PromptType.UPGRADER, PromptType.CUSTOM})
"""The types whose templates rewrite prompts."""


class PromptStage(StrEnum):
    """How far a version has come."""

    DEVELOPMENT = "DEVELOPMENT"
    CANARY_5 = "CANARY_5"
    CANARY_25 = "CANARY_25"
    CANARY_50 = "CANARY_50"
    PRODUCTION = "PRODUCTION"
    ROLLED_BACK = "ROLLED_BACK"
    RETIRED = "RETIRED"

    @property
    def share(self) -> float:
        """The share of users that is on the version in this stage, 0 to 1."""
        return _SHARES.get(self, 0.0)

    @property
    def is_canary(self) -> bool:
        return 0 < self.share < 1

    def next(self) -> "PromptStage":
        """The stage after this one. Raises ValueError where there is none."""
        if self not in _ON_THE_WAY[:-1]:
            raise ValueError(f"no stage follows {self}")
        return _ON_THE_WAY[_ON_THE_WAY.index(self) + 1]


_SHARES = {
    PromptStage.CANARY_5: 0.05,
    PromptStage.CANARY_25: 0.25,
    PromptStage.CANARY_50: 0.5,
    PromptStage.PRODUCTION: 1.0,
}
_ON_THE_WAY = (
    PromptStage.DEVELOPMENT,
    PromptStage.CANARY_5,
    PromptStage.CANARY_25,
    PromptStage.CANARY_50,
    PromptStage.PRODUCTION,
)


class PromptParameters(Contract):
    """How the model is asked. None: the service's setting."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=64, le=32_000)
    model: str | None = Field(default=None, min_length=1, max_length=200)


class PromptChanged(Contract):
    """Data of `prompts.changed.v1`: a version as it is now. `tenantId` is null for the platform's versions."""

    tenant_id: str | None
    name: str
    type: PromptType
    version: int
    prompt_id: str
    stage: PromptStage
    share: float
    template: str
    parameters: PromptParameters = PromptParameters()
    reason: str | None = None
    occurred_at: Timestamp


def rollout_point(tenant_id: str, name: str, subject: str) -> float:
    """Where a user stands in the rollouts of a template, 0 to 1 and below 1: on the canary when below its share.

    `subject` is the user's keyed hash, or the upgrade's id where there is no user. The point depends on nothing else,
    so it is the same on every replica, and a growing share moves nobody back.
    """
    digest = hashlib.sha256("\x1f".join((tenant_id, name, subject)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
