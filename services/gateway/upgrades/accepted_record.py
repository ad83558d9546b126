"""The gateway's stored record of an accepted upgrade, with all that is needed to publish, end and show it."""

from datetime import datetime
from typing import Any

import orjson
from pydantic import Field

from services.gateway.quota.held_work import DELIVERED, HeldWork, Spent, end_event_of
from services.gateway.quota.holds import NOTHING, HoldSize
from shared.contracts.contract import Contract, Timestamp
from shared.contracts.upgrade_results import UpgradeStatus
from shared.contracts.upgrade_tasks import (
    RetrieveTask,
    RewriteTask,
    SealedText,
    Stage,
    SummarizeTask,
    UpgradeTask,
)

ERASED = "[erased]"
_STORED_WHEN_TRUE = ("cut_short", "reported_stages", "kept")
TASK_MODEL: dict[Stage, type[UpgradeTask]] = {
    Stage.SUMMARIZER: SummarizeTask,
    Stage.RAG: RetrieveTask,
    Stage.UPGRADER: RewriteTask,
}


class StageShare(Contract):
    """The part of a recorded hold that one stage can use."""

    tokens: int
    embeddings: int


class RecordedHold(Contract):
    """The hold with which an upgrade was admitted. After `expiresAt` its stages can use nothing more."""

    upgrades: int
    tokens: int
    embeddings: int
    expires_at: Timestamp
    stages: dict[Stage, StageShare] = {}


class AcceptedRecord(Contract):
    """One accepted upgrade.

    `open_since` is set until its end is known, `uncounted_since` from then until usage has counted it. Both have a
    partial index, so unfinished records are cheap to find among many finished ones.
    """

    upgrade_id: str = Field(alias="_id")
    tenant_id: str
    credential_id: str
    user_ref: str | None
    key_hash: str | None = Field(description="keyed hash of the idempotency key")
    body_hash: str | None = Field(description="keyed hash of the body as it was sent")
    period: str
    created_at: Timestamp
    deadline: Timestamp
    task: str = Field(description="the redacted message for the first inbox, JSON")
    sealed_pii: SealedText | None
    traceparent: str | None
    hold: RecordedHold | None = None
    spent: list[Spent] | None = Field(default=None, description="its usage events, once its end is known")
    cut_short: bool = Field(
        default=False, description="it ended while a stage may have been running, and not all stages have reported yet"
    )
    reported_stages: list[Stage] = Field(
        default=[], alias="asked", description="stages that have reported their usage, for one that was cut short"
    )
    outcome: UpgradeStatus = UpgradeStatus.ACCEPTED
    kept: bool = Field(
        default=False, alias="told", description="a repeated request was answered with it, so it is not withdrawn"
    )
    published_on: str | None = Field(default=None, description="cluster id of the log that confirmed the message")
    expiries: int = Field(default=0, description="how often it was published as expired")
    next_expiry: Timestamp | None = None
    open_since: Timestamp | None = None
    uncounted_since: Timestamp | None = None
    erased_at: Timestamp | None = Field(default=None, description="when its content was erased")
    erasure_since: Timestamp | None = Field(
        default=None, description="set until its content is erased in all other stores"
    )

    def to_document(self) -> dict[str, Any]:
        """The stored form. Null, false and empty fields are left out, which keeps the record out of partial indexes."""
        untrue = {name for name in _STORED_WHEN_TRUE if not getattr(self, name)}
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=untrue)

    @staticmethod
    def from_document(document: dict[str, Any]) -> "AcceptedRecord":
        optional = dict.fromkeys(("userRef", "keyHash", "bodyHash", "sealedPii", "traceparent"))
        return AcceptedRecord.model_validate({**optional, **document})

    def first_stage(self) -> Stage:
        """The stage whose inbox gets the message first."""
        return UpgradeTask.model_validate_json(self.task).itinerary[0]

    def first_task(self) -> UpgradeTask:
        """The message for the first inbox of its itinerary."""
        return TASK_MODEL[self.first_stage()].model_validate_json(self.task)

    def held_work(self) -> HeldWork:
        """The upgrade and its hold, for admission."""
        hold = self.hold or RecordedHold(upgrades=1, tokens=0, embeddings=0, expires_at=self.deadline)
        end = Spent(event_id=end_event_of(self.upgrade_id), upgrades=int(self.outcome in DELIVERED))
        return HeldWork(
            hold_id=self.upgrade_id,
            size=HoldSize(hold.upgrades, hold.tokens, hold.embeddings),
            expires_at=hold.expires_at,
            ended=self.has_ended(),
            spent=tuple(self.spent or [end]),
            cut_short=self.cut_short,
            unknown=self._unknown(hold),
            end_event=end.event_id,
        )

    def unreported_stages(self) -> list[Stage]:
        """Stages whose usage may be unknown after a cut-short end. The upgrader's own usage is part of its result."""
        return [stage for stage in self.stages() if stage is not Stage.UPGRADER and stage not in self.reported_stages]

    def _unknown(self, hold: RecordedHold) -> HoldSize:
        """The most that the unreported stages of an upgrade that was cut short may have used."""
        if not self.cut_short:
            return NOTHING
        if not hold.stages:
            return HoldSize(0, hold.tokens, hold.embeddings)
        shares = [hold.stages[stage] for stage in self.unreported_stages()]
        return HoldSize(0, sum(share.tokens for share in shares), sum(share.embeddings for share in shares))

    def stages(self) -> list[Stage]:
        """The stages of its itinerary, in order."""
        return [Stage(name) for name in orjson.loads(self.task)["itinerary"]]

    def erased_task(self) -> str:
        """The message without any content of its client. The upgrade can still be ended with it."""
        erased: dict[str, Any] = {
            "user_prompt": ERASED,
            "conversation_history": [],
            "placeholder_counts": {},
            "sealed_pii": None,
        }
        return self.first_task().model_copy(update=erased).model_dump_json(by_alias=True)

    def has_ended(self) -> bool:
        return self.outcome != UpgradeStatus.ACCEPTED

    def older_than(self, moment: datetime) -> bool:
        return self.created_at < moment
