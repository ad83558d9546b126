"""The gateway's record of an accepted upgrade: all that is needed to publish it again and to answer for it."""

from datetime import datetime
from typing import Any

from pydantic import Field

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

TASK_MODEL: dict[Stage, type[UpgradeTask]] = {
    Stage.SUMMARIZER: SummarizeTask,
    Stage.RAG: RetrieveTask,
    Stage.UPGRADER: RewriteTask,
}


class AcceptedRecord(Contract):
    """One accepted upgrade. `openSince` is there until its end is known, `uncountedSince` from then until usage has it.

    Both have a partial index, so that what is unfinished stays cheap to find among all that was ever accepted.
    """

    upgrade_id: str = Field(alias="_id")
    tenant_id: str
    credential_id: str
    user_ref: str | None
    idempotency_key: str | None
    body_hash: str | None = Field(description="keyed hash of the body as it was sent")
    period: str
    created_at: Timestamp
    deadline: Timestamp
    task: str = Field(description="the redacted message for the first inbox, JSON")
    sealed_pii: SealedText | None
    traceparent: str | None
    outcome: UpgradeStatus = UpgradeStatus.ACCEPTED
    published_on: str | None = Field(default=None, description="cluster id of the log that confirmed the message")
    expiries: int = Field(default=0, description="how often it was handed over as expired")
    next_expiry: Timestamp | None = None
    open_since: Timestamp | None = None
    uncounted_since: Timestamp | None = None

    def to_document(self) -> dict[str, Any]:
        """The record as it is stored; what is null is left out, so that partial indexes do not see it."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @staticmethod
    def from_document(document: dict[str, Any]) -> "AcceptedRecord":
        optional = dict.fromkeys(("userRef", "idempotencyKey", "bodyHash", "sealedPii", "traceparent"))
        return AcceptedRecord.model_validate({**optional, **document})

    def first_task(self) -> UpgradeTask:
        """The message as it goes into the first inbox of its itinerary."""
        task = UpgradeTask.model_validate_json(self.task)
        return TASK_MODEL[task.itinerary[0]].model_validate_json(self.task)

    def has_ended(self) -> bool:
        return self.outcome != UpgradeStatus.ACCEPTED

    def older_than(self, moment: datetime) -> bool:
        return self.created_at < moment
