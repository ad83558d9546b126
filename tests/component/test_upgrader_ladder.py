"""How an upgrade ends while the model is out: a second model, an earlier answer, the prompt as it came in."""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from services.upgrader.ending import Ladder
from services.upgrader.results import RESULTS, Results
from services.upgrader.rewriting.rewrite import Repair, Rewrite, RewriteFailed, RewriteRequest, request_for
from shared.contracts.contract import now_utc
from shared.contracts.upgrade_results import PromptVersion, UpgradeResult, UpgradeStatus
from shared.contracts.upgrade_tasks import (
    ComponentUsage,
    Stage,
    StageOutput,
    TaskOptions,
    UpgradeTask,
    UpgradeWarning,
)
from shared.messaging.publish.outbox import FactOutbox
from shared.messaging.publish.producer import EventProducer
from shared.storage.sqlite import SqliteDatabase
from tests.unit.upgrade_fixtures import make_chunk, make_task

HAIKU = "TASK\nWrite a haiku about rain.\n\nFORMAT\nThree lines of 5, 7 and 5 syllables."
USAGE = ComponentUsage(component="upgrader", operation="rewrite", model="m", tokens_in=10, tokens_out=5)
OUT = RewriteFailed("model_unavailable", "The model is out.", USAGE)


class Model:
    """Answers, or fails, in turn; the last entry stands for all that follow."""

    def __init__(self, *answers: str | RewriteFailed) -> None:
        self._answers: Sequence[str | RewriteFailed] = answers
        self.reserves: list[timedelta] = []

    async def rewrite(self, request: RewriteRequest, reserve: timedelta, repair: Repair | None = None) -> Rewrite:
        answer = self._answers[min(len(self.reserves), len(self._answers) - 1)]
        self.reserves.append(reserve)
        if isinstance(answer, RewriteFailed):
            raise answer
        return Rewrite(
            upgraded_prompt=answer,
            reasoning="r",
            missing_questions=("Who?",),
            confidence=0.7,
            cited=(0,) if request.documents else (),
            usage=USAGE,
            prompt=PromptVersion(name="upgrader", version=2),
        )


class NoLedger:
    async def missing(self, event_ids: Sequence[str]) -> set[str]:
        return set()


@pytest.fixture
async def results(tmp_path: Path) -> AsyncIterator[Results]:
    database = SqliteDatabase(tmp_path / "upgrader.sqlite3")
    made = Results(FactOutbox(database.collection(RESULTS), cast(EventProducer, None), NoLedger()))
    await database.start()
    yield made
    await database.stop(1)


def task(prompt: str = "Write a haiku about rain", **changes: Any) -> UpgradeTask:
    now = now_utc()
    return make_task(prompt, created_at=now, deadline=now + timedelta(seconds=60), **changes)


def with_documents(*numbers: int, **changes: Any) -> UpgradeTask:
    summarized = task(**changes).advanced(StageOutput(stage=Stage.SUMMARIZER))
    return summarized.advanced(StageOutput(stage=Stage.RAG, chunks=[make_chunk(number) for number in numbers]))


async def ended(
    results: Results, of: UpgradeTask, model: Model, fallback: Model | None = None, hours: float = 24
) -> UpgradeResult:
    ladder = Ladder(model, results, fallback=fallback, cached_for=timedelta(hours=hours))
    return (await results.end(of, await ladder.end_of(request_for(of)))).result


def codes(result: UpgradeResult) -> list[str]:
    return [warning.code for warning in result.warnings]


async def test_the_model_is_asked_first_and_alone(results: Results) -> None:
    fallback = Model(HAIKU)
    result = await ended(results, task(), Model(HAIKU), fallback)
    assert (result.status, codes(result), fallback.reserves) == (UpgradeStatus.UPGRADED, [], [])


async def test_a_second_model_answers_for_the_first(results: Results) -> None:
    model, fallback = Model(OUT), Model(HAIKU)
    result = await ended(results, task(), model, fallback)
    assert (result.status, codes(result)) == (UpgradeStatus.UPGRADED, ["fallback_model"])
    assert sum(item.tokens_in for item in result.usage) == 2 * USAGE.tokens_in
    assert model.reserves[0] > timedelta(seconds=20) > fallback.reserves[0]


async def test_an_answer_that_is_no_better_is_not_asked_for_elsewhere(results: Results) -> None:
    fallback = Model(HAIKU)
    result = await ended(results, task(), Model("Write a haiku about rain."), fallback)
    assert (result.status, codes(result)) == (UpgradeStatus.ORIGINAL, ["rewrite_not_better"])
    assert (result.upgraded_prompt, fallback.reserves) == ("Write a haiku about rain", [])
    assert result.error is not None
    assert "in all" in result.error.detail


async def test_the_same_question_is_served_again_with_its_age(results: Results) -> None:
    first = await ended(results, task(), Model(HAIKU))
    result = await ended(results, task(), Model(OUT))
    assert (result.status, result.upgraded_prompt) == (UpgradeStatus.CACHED, HAIKU)
    assert codes(result) == ["model_unavailable", "cached_answer"]
    assert "1 minutes old" in result.warnings[1].detail
    assert result.upgrade_id != first.upgrade_id
    assert [item.tokens_in for item in result.usage] == [USAGE.tokens_in]


@pytest.mark.parametrize(
    "other",
    [
        task("Write a haiku about snow"),
        task(tenant_id="tenant-b"),
        task(options=TaskOptions(mode="full")),
        task(options=TaskOptions(enable_pii_redaction=False)),
        make_task(
            "Write a haiku about rain", ("user", "Hello"), created_at=now_utc(), deadline=now_utc() + timedelta(hours=1)
        ),
        with_documents(1),
    ],
    ids=[
        "another prompt",
        "another tenant",
        "other options",
        "values shown",
        "another conversation",
        "other documents",
    ],
)
async def test_another_question_is_not_served(results: Results, other: UpgradeTask) -> None:
    await ended(results, task(), Model(HAIKU))
    result = await ended(results, other, Model(OUT))
    assert (result.status, result.upgraded_prompt) == (UpgradeStatus.ORIGINAL, other.user_prompt)


async def test_an_answer_from_documents_serves_with_the_same_documents_only(results: Results) -> None:
    await ended(results, with_documents(1, 2), Model(HAIKU))
    assert (await ended(results, with_documents(2, 1), Model(OUT))).status is UpgradeStatus.CACHED
    assert (await ended(results, with_documents(1), Model(OUT))).status is UpgradeStatus.ORIGINAL
    skipped = StageOutput(stage=Stage.RAG, warnings=[UpgradeWarning(code="retrieval_skipped", detail="out")])
    lost = task().advanced(StageOutput(stage=Stage.SUMMARIZER)).advanced(skipped)
    assert (await ended(results, lost, Model(OUT))).status is UpgradeStatus.ORIGINAL


async def test_placeholders_of_the_question_serve_and_those_of_documents_do_not(results: Results) -> None:
    asked = "Write a haiku about rain for <EMAIL_1>"
    await ended(results, task(asked), Model(f"{HAIKU} It is for <EMAIL_1>."))
    assert (await ended(results, task(asked), Model(OUT))).status is UpgradeStatus.CACHED
    other = "Write a haiku about wind for <EMAIL_1>"
    await ended(results, task(other), Model(HAIKU.replace("rain", "wind") + " It is for <EMAIL_1> and <EMAIL_2>."))
    assert (await ended(results, task(other), Model(OUT))).status is UpgradeStatus.ORIGINAL


async def test_an_erased_answer_serves_nobody(results: Results) -> None:
    first = await ended(results, task(), Model(HAIKU))
    assert await results.erase(first.tenant_id, first.upgrade_id)
    assert (await ended(results, task(), Model(OUT))).status is UpgradeStatus.ORIGINAL


async def test_an_answer_that_is_too_old_does_not_serve(results: Results) -> None:
    await ended(results, task(), Model(HAIKU))
    assert (await ended(results, task(), Model(OUT), hours=0)).status is UpgradeStatus.ORIGINAL


async def test_a_refusal_is_an_answer(results: Results) -> None:
    await ended(results, task(), Model(HAIKU))
    refused = RewriteFailed("model_refused", "The model declined.", USAGE)
    result = await ended(results, task(), Model(refused), Model(HAIKU))
    assert result.status is UpgradeStatus.ORIGINAL
