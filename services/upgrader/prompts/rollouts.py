"""The steps of a prompt version's rollout: from a canary with 5 % of upgrades to production, or back.

All steps are pure functions of a `PromptLine`: the versions of one template name of one tenant, or of the platform.
The store writes lines by compare-and-set on their revision, so each step is done once.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import Field

from services.upgrader.prompts.evidence import Block, Evidence
from shared.contracts.contract import Contract, Timestamp
from shared.contracts.prompts import PromptStage, PromptType
from shared.contracts.prompts_http import RolloutStep

Decision = Literal["promote", "rollback", "inconclusive"]
_MOST_HISTORY = 50
_LATENCY_BOUNDS_MS = tuple(round(50 * 1.35**step) for step in range(28))  # 50 ms to 165 s


class RolloutRefused(Exception):
    """The step does not fit the state of the line; the text is for the client."""


class TrackTotals(Contract):
    """Totals of the runs of one track. `latencies` are counts by upper bound in ms."""

    runs: int = 0
    errors: int = 0
    cost_nano_usd: int = 0
    tokens: int = 0
    latencies: dict[str, int] = {}
    scored: int = 0
    score_sum: float = 0.0
    score_squares: float = 0.0
    accepted: int = 0
    edited: int = 0
    rejected: int = 0
    pii_leaks: int = 0
    injections: int = 0

    @property
    def error_rate(self) -> float | None:
        return self.errors / self.runs if self.runs else None

    def latency_ms(self, quantile: float) -> int | None:
        """The upper bound of the bucket in which the quantile lies; None without runs."""
        total = sum(self.latencies.values())
        seen = 0
        for bound in sorted(int(bound) for bound in self.latencies):
            seen += self.latencies[str(bound)]
            if seen >= quantile * total:
                return bound
        return None

    def plus(self, other: "TrackTotals") -> "TrackTotals":
        """The sum of both totals."""
        summed = {
            name: getattr(self, name) + getattr(other, name) for name in type(self).model_fields if name != "latencies"
        }
        bounds = {*self.latencies, *other.latencies}
        return TrackTotals(
            **summed, latencies={b: self.latencies.get(b, 0) + other.latencies.get(b, 0) for b in bounds}
        )


class EvidenceState(Contract):
    """An `Evidence` as it is stored."""

    runs: int = 0
    failures: int = 0
    log_weights: list[float] = list(Evidence().log_weights)

    def after(self, block: Block) -> "EvidenceState":
        """The state after one more block."""
        evidence = self.evidence().after(block)
        return EvidenceState(runs=evidence.runs, failures=evidence.failures, log_weights=list(evidence.log_weights))

    def evidence(self) -> Evidence:
        return Evidence(self.runs, self.failures, tuple(self.log_weights))


class Verdict(Contract):
    """A decision about a canary, with its reason and the numbers behind it."""

    decision: Decision
    reason: str
    evidence: dict[str, float] = {}
    at: Timestamp


class PromptRef(Contract):
    """A version by id and number."""

    prompt_id: str
    version: int


class Rollout(Contract):
    """A version in rollout. `totals` cover the whole rollout, `stage_totals` its current stage."""

    prompt_id: str
    version: int
    stage: PromptStage
    started_at: Timestamp
    stage_since: Timestamp
    minimum_runs: int = 50
    max_error_rate: float = 0.05
    gates: list[str] = []
    totals: dict[str, TrackTotals] = Field(default_factory=lambda: {"canary": TrackTotals(), "stable": TrackTotals()})
    stage_totals: dict[str, TrackTotals] = Field(
        default_factory=lambda: {"canary": TrackTotals(), "stable": TrackTotals()}
    )
    errors: EvidenceState = EvidenceState()
    leaks: EvidenceState = EvidenceState()
    injections: EvidenceState = EvidenceState()
    verdict: Verdict | None = None


class PromptLine(Contract):
    """The versions of one name. `tenant_id` is null for the platform's. `previous` ends with the newest."""

    tenant_id: str | None
    name: str
    type: PromptType
    production: PromptRef | None = None
    previous: list[PromptRef] = []
    rolled_back: list[str] = []
    rollout: Rollout | None = None
    last_rollout: Rollout | None = None
    versions: int = 0
    history: list[RolloutStep] = []
    promoted_day: str | None = None
    counted: list[str] = Field(default=[], description="ids of the runs in the last block, for a repeat after a crash")
    revision: int = 0

    def stage_of(self, prompt_id: str) -> PromptStage:
        """The stage of a version of this line."""
        if self.rollout is not None and self.rollout.prompt_id == prompt_id:
            return self.rollout.stage
        if self.production is not None and self.production.prompt_id == prompt_id:
            return PromptStage.PRODUCTION
        if prompt_id in self.rolled_back:
            return PromptStage.ROLLED_BACK
        if any(ref.prompt_id == prompt_id for ref in self.previous):
            return PromptStage.RETIRED
        return PromptStage.DEVELOPMENT


def start_rollout(
    line: PromptLine,
    version: PromptRef,
    *,
    minimum_runs: int,
    max_error_rate: float,
    gates: Sequence[str],
    by: str,
    now: datetime,
) -> PromptLine:
    """The line with `version` as a canary at 5 %.

    Raises RolloutRefused if a rollout is running, or this version is in production.
    """
    if line.rollout is not None:
        raise RolloutRefused(f"Version {line.rollout.version} of this name is on its way; one rollout at a time.")
    if line.stage_of(version.prompt_id) is PromptStage.PRODUCTION:
        raise RolloutRefused("This version is in production already.")
    rollout = Rollout(
        prompt_id=version.prompt_id,
        version=version.version,
        stage=PromptStage.CANARY_5,
        started_at=now,
        stage_since=now,
        minimum_runs=minimum_runs,
        max_error_rate=max_error_rate,
        gates=list(gates),
    )
    started = line.model_copy(
        update={"rollout": rollout, "rolled_back": [id for id in line.rolled_back if id != version.prompt_id]}
    )
    return _noted(started, version, PromptStage.CANARY_5, "rollout started", by, now)


def promote(line: PromptLine, reason: str, by: str, now: datetime) -> PromptLine:
    """The line with its rollout at the next stage. After 50 % the version is in production and the rollout ends.

    Raises RolloutRefused if no rollout is running.
    """
    rollout = line.rollout
    if rollout is None:
        raise RolloutRefused("No version of this name is on its way.")
    stage = rollout.stage.next()
    version = PromptRef(prompt_id=rollout.prompt_id, version=rollout.version)
    moved = rollout.model_copy(
        update={
            "stage": stage,
            "stage_since": now,
            "stage_totals": {"canary": TrackTotals(), "stable": TrackTotals()},
        }
    )
    if stage is not PromptStage.PRODUCTION:
        return _noted(line.model_copy(update={"rollout": moved}), version, stage, reason, by, now)
    previous = [*line.previous, line.production] if line.production is not None else line.previous
    ended = line.model_copy(
        update={"production": version, "previous": previous, "rollout": None, "last_rollout": moved}
    )
    return _noted(ended, version, stage, reason, by, now)


def roll_back(line: PromptLine, prompt_id: str, reason: str, by: str, now: datetime) -> PromptLine:
    """The line without its canary, or with the previous version in production again.

    Raises RolloutRefused if the version is neither in rollout nor in production, or the platform has no previous one.
    """
    if line.rollout is not None and line.rollout.prompt_id == prompt_id:
        version = PromptRef(prompt_id=prompt_id, version=line.rollout.version)
        ended = line.rollout.model_copy(update={"stage": PromptStage.ROLLED_BACK})
        taken_back = line.model_copy(
            update={"rollout": None, "last_rollout": ended, "rolled_back": [*line.rolled_back, prompt_id]}
        )
        return _noted(taken_back, version, PromptStage.ROLLED_BACK, reason, by, now)
    if line.production is None or line.production.prompt_id != prompt_id:
        raise RolloutRefused("This version is neither on its way nor in production.")
    if not line.previous and line.tenant_id is None:
        raise RolloutRefused("There is no version before this one.")
    # Without a previous version, the tenant gets the platform's version again.
    before = line.previous[-1] if line.previous else None
    restored: dict[str, object] = {
        "production": before,
        "previous": line.previous[:-1],
        "rolled_back": [*line.rolled_back, prompt_id],
        "rollout": None,
        "last_rollout": line.rollout or line.last_rollout,
    }
    return _noted(line.model_copy(update=restored), line.production, PromptStage.ROLLED_BACK, reason, by, now)


def latency_bucket(milliseconds: int) -> str:
    """The name of the bucket of a latency: its upper bound in ms."""
    return str(next((bound for bound in _LATENCY_BOUNDS_MS if milliseconds <= bound), _LATENCY_BOUNDS_MS[-1]))


def _noted(line: PromptLine, version: PromptRef, stage: PromptStage, reason: str, by: str, now: datetime) -> PromptLine:
    entry = RolloutStep(
        at=now, prompt_id=version.prompt_id, version=version.version, stage=stage, reason=reason[:500], by=by
    )
    return line.model_copy(update={"history": [*line.history, entry][-_MOST_HISTORY:]})
