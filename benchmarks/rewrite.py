"""Compares the versions of the platform's rewrite template: which share of the rewrites passes the checks.

Uses the model of OPENAI_BASE_URL or OPENAI_MODEL where one of them is set, else the offline model. The offline model
follows fixed rules: its answers do not depend on the template, so that only tokens differ between the versions.
"""

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import mean
from sys import executable

from benchmarks.backends import EMBEDDED, PROJECT
from benchmarks.pairs import Measured, Row
from deploy.local.ports import free_port
from deploy.local.processes import ServerCommand
from deploy.local.readiness import port_answers
from deploy.local.servers import ServerProcess
from services.upgrader.prompts.platform_templates import PromptTemplate, platform_versions
from services.upgrader.reading.language import load_language_model
from services.upgrader.rewriting.rewrite import (
    Repair,
    Rewrite,
    RewriteFailed,
    RewriteModel,
    RewriteRequest,
    request_for,
    rewrite,
)
from services.upgrader.rewriting.rewrite_model import LlmRewriteModel
from shared.contracts.contract import new_id, now_utc
from shared.contracts.problems import WarningCode
from shared.contracts.upgrade_results import Mode, PromptVersion
from shared.contracts.upgrade_tasks import ComponentUsage, ConversationMessage, Stage, UpgradeTask
from shared.llm.client import ModelClient
from shared.llm.settings import ModelSettings
from shared.observability.metrics import REWRITE_CHECKS_FAILED
from shared.privacy.sealing import Vault
from shared.service.repair_holds import OpenRepairHolds
from tests.turns.labelled import Turn, labelled_turns

VERSIONS = (1, 2)
_TURNS = 60
_IN_FLIGHT = 4
_MAX_TOKENS = 2000
_TEMPERATURE = 0.2
_DEADLINE = timedelta(seconds=120)
_LEAST_SHARE = 0.001
_PROMPTS = Path(__file__).parent / "rewrite_prompts.jsonl"
_SIDES = (
    f"A is version {VERSIONS[-1]} of the template, B is version {VERSIONS[-2]}: 120 first prompts in 8 languages and "
    f"{_TURNS} prompts after a conversation, half of them follow-ups. With the offline model, whose answers follow "
    "fixed rules, both versions produce the same answers."
)
FIRST = Row("rewrite-first", "share", f"The share of prompts whose first answer passes all checks. {_SIDES}")
PASSED = Row("rewrite-passed", "share", f"The share that passes at the first try or after the repair. {_SIDES}")
MODE = Row("rewrite-mode", "share", f"The share of first answers whose mode is the labelled one. {_SIDES}")
TOKENS = Row(
    "rewrite-tokens", "tokens", f"The mean of tokens in and out of an upgrade with its repair. {_SIDES}", better="less"
)
ROWS = (FIRST, PASSED, MODE, TOKENS)


@dataclass(frozen=True)
class Case:
    """A prompt to rewrite and the mode that is right for it."""

    prompt: str
    history: tuple[ConversationMessage, ...]
    mode: Mode


@dataclass(frozen=True)
class Outcome:
    """How the rewrite of one case ended. `failed` is the code of the warning where there is no rewrite."""

    answers: int
    first_passed: bool
    mode_agrees: bool | None
    failed: str | None
    usage: ComponentUsage | None


@dataclass(frozen=True)
class Tally:
    """The outcomes of all cases with one version. `checks` counts failed checks by `attempt name`."""

    version: int
    outcomes: Sequence[Outcome]
    checks: Counter[str]

    @property
    def first(self) -> float:
        return self._share(sum(outcome.first_passed for outcome in self.outcomes))

    @property
    def passed(self) -> float:
        return self._share(sum(outcome.failed is None for outcome in self.outcomes))

    @property
    def not_better(self) -> int:
        return sum(outcome.failed == WarningCode.REWRITE_NOT_BETTER for outcome in self.outcomes)

    @property
    def unanswered(self) -> int:
        """Cases that ended without a rewrite for another reason: the model failed."""
        return sum(outcome.failed is not None for outcome in self.outcomes) - self.not_better

    @property
    def mode(self) -> float:
        known = [outcome.mode_agrees for outcome in self.outcomes if outcome.mode_agrees is not None]
        return sum(known) / len(known) if known else 0.0

    @property
    def tokens(self) -> tuple[float, float]:
        """Means of tokens in and out."""
        spent = [outcome.usage for outcome in self.outcomes if outcome.usage is not None]
        if not spent:
            return 0.0, 0.0
        return mean(usage.tokens_in for usage in spent), mean(usage.tokens_out for usage in spent)

    def _share(self, count: int) -> float:
        return count / len(self.outcomes)


async def measure(kind: str, chosen: Sequence[Row]) -> list[Measured]:
    """Rewrites every case with each version; prints a table of the versions. Needs no broker."""
    if kind != EMBEDDED:
        return []
    load_language_model()
    cases = [*_first_prompts(), *_turns()]
    async with _model_settings() as (settings, name):
        print(f"model: {name}; {len(cases)} prompts", flush=True)
        tallies = {version: await _tally(version, settings, cases) for version in VERSIONS}
    print(_table(list(tallies.values())), flush=True)
    a, b = tallies[VERSIONS[-1]], tallies[VERSIONS[-2]]
    return [_measured(row, a, b, name) for row in chosen]


def _measured(row: Row, a: Tally, b: Tally, model: str) -> Measured:
    sides = {
        FIRST: (a.first, b.first),
        PASSED: (a.passed, b.passed),
        MODE: (a.mode, b.mode),
        TOKENS: (sum(a.tokens), sum(b.tokens)),
    }
    left, right = sides[row]
    absolute = f"A {left:.1%}, B {right:.1%}"
    if row is TOKENS:
        absolute = "; ".join(
            f"{side} {tally.tokens[0]:.0f} in, {tally.tokens[1]:.0f} out" for side, tally in (("A", a), ("B", b))
        )
    if row is FIRST:
        absolute += f"; failed checks A {_counts(a, 'first')}; B {_counts(b, 'first')}"
    if row is PASSED:
        absolute += f"; rewrite_not_better A {a.not_better}, B {b.not_better}"
    ratio = max(left, _LEAST_SHARE) / max(right, _LEAST_SHARE)
    return Measured(row.on(EMBEDDED), row, (ratio,), f"{absolute}; {model}")


async def _tally(version: int, settings: ModelSettings, cases: Sequence[Case]) -> Tally:
    client = ModelClient(settings)
    await client.start()
    before = _failed_checks()
    free = asyncio.Semaphore(_IN_FLIGHT)
    model = LlmRewriteModel(client, Vault([bytes(32)]), OpenRepairHolds(), _MAX_TOKENS, _TEMPERATURE)
    template = _template(version)

    async def one(case: Case) -> Outcome:
        async with free:
            return await _outcome(case, model, template)

    try:
        outcomes = await asyncio.gather(*(one(case) for case in cases))
    finally:
        await client.stop(0)
    return Tally(version, outcomes, _failed_checks() - before)


async def _outcome(case: Case, model: RewriteModel, template: PromptTemplate) -> Outcome:
    now = now_utc()
    request = request_for(
        UpgradeTask(
            upgrade_id=new_id(),
            tenant_id="benchmark",
            period=f"{now:%Y-%m}",
            created_at=now,
            deadline=now + _DEADLINE,
            user_prompt=case.prompt,
            conversation_history=list(case.history),
            itinerary=[Stage.UPGRADER],
        ),
        template,
    )
    recorded = _Recorded(model)
    failed: str | None = None
    usage: ComponentUsage | None = None
    try:
        usage = (await rewrite(request, recorded)).usage
    except RewriteFailed as failure:
        failed, usage = failure.code, failure.usage
    answers = recorded.answers
    return Outcome(
        answers=len(answers),
        first_passed=failed is None and len(answers) == 1 and not answers[0].repaired,
        mode_agrees=(answers[0].mode or request.mode) == case.mode if answers else None,
        failed=failed,
        usage=usage,
    )


def _template(version: int) -> PromptTemplate:
    found = next(known for known in platform_versions() if (known.name, known.version) == ("upgrader", version))
    used = PromptVersion(name=found.name, version=version, prompt_id=found.prompt_id)
    return PromptTemplate(found.text, found.parameters, used)


class _Recorded(RewriteModel):
    """Another rewrite model; keeps its answers."""

    def __init__(self, model: RewriteModel) -> None:
        self._model = model
        self.answers: list[Rewrite] = []

    async def rewrite(self, request: RewriteRequest, reserve: timedelta, repair: Repair | None = None) -> Rewrite:
        answer = await self._model.rewrite(request, reserve, repair)
        self.answers.append(answer)
        return answer


@asynccontextmanager
async def _model_settings() -> AsyncIterator[tuple[ModelSettings, str]]:
    """Yields the settings of the model to measure with, and its name for the report."""
    if os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_MODEL"):
        settings = ModelSettings()
        yield settings, settings.openai_model
        return
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    argv = (executable, "-m", "deploy.local.offline_model", "--host", "127.0.0.1", "--port", str(port))
    command = ServerCommand("model", argv, port, url, lambda: port_answers(port), env={"PYTHONPATH": str(PROJECT)})
    values: dict[str, object] = {"openai_base_url": url, "openai_api_key": "offline"}
    async with ServerProcess(command):
        yield ModelSettings(_env_file=None, **values), "offline model"  # type: ignore[arg-type]


def _first_prompts() -> Iterator[Case]:
    for line in _PROMPTS.read_text(encoding="utf-8").splitlines():
        yield Case(json.loads(line)["prompt"], (), "full")


def _turns() -> list[Case]:
    """Turns that the weights of the hint were not fitted to: as many of each language as of any other, within one."""
    chance = random.Random(7)
    cases: list[Case] = []
    for is_follow_up in (True, False):
        by_language: dict[str, list[Turn]] = {}
        for turn in labelled_turns(kept_for_test=True):
            if turn.is_follow_up is is_follow_up:
                by_language.setdefault(turn.language, []).append(turn)
        for turns in by_language.values():
            chance.shuffle(turns)
        rounds = [turn for number in range(_TURNS) for turns in by_language.values() for turn in turns[number:][:1]]
        mode: Mode = "contextual" if is_follow_up else "full"
        cases += [Case(turn.prompt, tuple(turn.history), mode) for turn in rounds[: _TURNS // 2]]
    return cases


def _failed_checks() -> Counter[str]:
    """The counters of failed checks, by `attempt name`."""
    return Counter(
        {
            f"{sample.labels['attempt']} {sample.labels['check']}": int(sample.value)
            for metric in REWRITE_CHECKS_FAILED.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        }
    )


def _counts(tally: Tally, attempt: str) -> str:
    found = [
        f"{name.removeprefix(attempt).strip()} {count}"
        for name, count in tally.checks.most_common()
        if name.startswith(f"{attempt} ")
    ]
    return ", ".join(found) or "none"


def _table(tallies: Sequence[Tally]) -> str:
    lines = [
        "template | first try | with repair | not better | no answer | mode | tokens in | tokens out",
        *(
            f"v{tally.version} | {tally.first:.1%} | {tally.passed:.1%} | {tally.not_better} | {tally.unanswered} | "
            f"{tally.mode:.1%} | {tally.tokens[0]:.0f} | {tally.tokens[1]:.0f}"
            for tally in tallies
        ),
        *(
            f"v{tally.version} failed checks: first try: {_counts(tally, 'first')}; repair: {_counts(tally, 'repair')}"
            for tally in tallies
        ),
    ]
    return "\n".join(lines)
