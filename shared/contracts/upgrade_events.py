"""The events of one upgrade that its client can follow. An event's id is its step, the same on every repeat."""

from typing import Literal

from shared.contracts.contract import Contract
from shared.contracts.upgrade_tasks import Stage

ACCEPTED_STEP = 1
_STAGE_ORDER = (Stage.SUMMARIZER, Stage.RAG, Stage.UPGRADER)
COMPLETED_STEP = 2 * len(_STAGE_ORDER) + 2

StageState = Literal["started", "finished", "skipped"]


class StageProgress(Contract):
    """Data of a `stage` event. `latencyMs` is null until the stage has ended."""

    stage: Stage
    state: StageState
    latency_ms: int | None = None


def stage_step(stage: Stage, state: StageState) -> int:
    """The event id of a stage's progress: 2, 4, 6 when it starts, 3, 5, 7 when it ends."""
    return 2 * _STAGE_ORDER.index(stage) + (2 if state == "started" else 3)
