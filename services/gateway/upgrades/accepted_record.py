"""The gateway's record of an accepted upgrade: all that is needed to publish it again and to answer for it."""

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
_THERE_WHEN_SO = ("cut_short", "asked", "told")
TASK_MODEL: dict[Stage, type[UpgradeTask]] = {
    Stage.SUMMARIZER: SummarizeTask,
    Stage.RAG: RetrieveTask,
    Stage.UPGRADER: RewriteTask,
}


class StageHold(Contract):
    """The share of one stage in a hold."""

    tokens: int
    embeddings: int


class StoredHold(Contract):
    """The hold that an upgrade was admitted with. It can cost nothing more after `expiresAt`."""

    upgrades: int
    tokens: int
    embeddings: int
    expires_at: Timestamp
    stages: dict[Stage, StageHold] = {}


class AcceptedRecord(Contract):
    """One accepted upgrade. `openSince` is there until its end is known, `uncountedSince` from then until usage has it.

    Both have a partial index, so that what is unfinished stays cheap to find among all that was ever accepted.
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
    hold: StoredHold | None = None
    spent: list[Spent] | None = Field(default=None, description="the events of its end, once that is known")
    cut_short: bool = Field(
        default=False, description="it was ended while a stage may have been at work, and not all stages were asked yet"
    )
    asked: list[Stage] = Field(default=[], description="stages that have told what they spent, when it was cut short")
    outcome: UpgradeStatus = UpgradeStatus.ACCEPTED
    told: bool = Field(default=False, description="a repeat of its request was answered with it: it is not taken back")
    published_on: str | None = Field(default=None, description="cluster id of the log that confirmed the message")
    expiries: int = Field(default=0, description="how often it was handed over as expired")
    next_expiry: Timestamp | None = None
    open_since: Timestamp | None = None
    uncounted_since: Timestamp | None = None
    erased_at: Timestamp | None = Field(default=None, description="its client, or somebody for them, had it erased")
    erasure_since: Timestamp | None = Field(default=None, description="until nothing is left in any other store")

    def to_document(self) -> dict[str, Any]:
        """The record as it is stored; what is null or not so is left out, so that partial indexes do not see it."""
        not_so = {name for name in _THERE_WHEN_SO if not getattr(self, name)}
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=not_so)

    @staticmethod
    def from_document(document: dict[str, Any]) -> "AcceptedRecord":
        optional = dict.fromkeys(("userRef", "keyHash", "bodyHash", "sealedPii", "traceparent"))
        return AcceptedRecord.model_validate({**optional, **document})

    def first_stage(self) -> Stage:
        """Whose inbox the message goes into first."""
        return UpgradeTask.model_validate_json(self.task).itinerary[0]

    def first_task(self) -> UpgradeTask:
        """The message as it goes into the first inbox of its itinerary."""
        return TASK_MODEL[self.first_stage()].model_validate_json(self.task)

    def held_work(self) -> HeldWork:
        """The upgrade as admission sees it."""
        hold = self.hold or StoredHold(upgrades=1, tokens=0, embeddings=0, expires_at=self.deadline)
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

    def unasked_stages(self) -> list[Stage]:
        """Those that may have spent what nobody knows of. What the upgrader has spent is in the end that it made."""
        return [stage for stage in self.stages() if stage is not Stage.UPGRADER and stage not in self.asked]

    def _unknown(self, hold: StoredHold) -> HoldSize:
        """What the stages that were not asked may have spent."""
        if not self.cut_short:
            return NOTHING
        if not hold.stages:
            return HoldSize(0, hold.tokens, hold.embeddings)
        shares = [hold.stages[stage] for stage in self.unasked_stages()]
        return HoldSize(0, sum(share.tokens for share in shares), sum(share.embeddings for share in shares))

    def stages(self) -> list[Stage]:
        """The stages it was sent through, in their order."""
        return [Stage(name) for name in orjson.loads(self.task)["itinerary"]]

    def erased_task(self) -> str:
        """The message without anything its client said: still good for ending the upgrade."""
        task = self.first_task()
        gone: dict[str, Any] = {"user_prompt": ERASED, "conversation_history": [], "placeholder_counts": {}}
        return task.model_copy(update={**gone, "sealed_pii": None}).model_dump_json(by_alias=True)

    def has_ended(self) -> bool:
        return self.outcome != UpgradeStatus.ACCEPTED

    def older_than(self, moment: datetime) -> bool:
        return self.created_at < moment
