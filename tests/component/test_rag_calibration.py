"""A minimum score has the same meaning with embedding models whose cosines lie in different ranges."""

import asyncio
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.rag.search.calibration import Calibrations, calibration_of
from services.rag.search.scoring import Calibration
from services.rag.store import Space
from shared.contracts.upgrade_tasks import TaskOptions
from shared.llm.client import Embedded
from shared.llm.errors import ModelUnavailable
from tests.component.rag_parts import LocalEmbeddings, RagParts, rag_parts, task_for
from tests.model_answers import embedding_of

LEAVE = """# Leave

Employees are entitled to 25 days of paid leave per calendar year. Questions go to the personnel office.
"""
EXPENSES = """# Expenses

Expense reports are filed within two weeks. Hotels above 150 euros need approval by a manager.
"""
PARAPHRASES = {
    LEAVE: "Employees get how many days of paid leave per calendar year?",
    EXPENSES: "Within how many weeks are expense reports filed, and which hotels need a manager's approval?",
}
UNRELATED = ("write a poem about the sea", "Explain quantum entanglement to a child", "Name three famous painters")

Rescale = Callable[[str, list[float]], list[float]]


def raised(text: str, vector: list[float]) -> list[float]:
    """Cosines of 0 to 0.85 become 0.7 to 0.95."""
    return [math.sqrt(0.7), *(value * math.sqrt(0.3) for value in vector)]


def lowered(text: str, vector: list[float]) -> list[float]:
    """Cosines of 0 to 1 become 0 to 0.8."""
    noise = embedding_of(text.replace(" ", ""), 1024)
    return [value * math.sqrt(0.8) for value in vector] + [value * math.sqrt(0.2) for value in noise]


class RescaledEmbeddings(LocalEmbeddings):
    """An unlisted model: real embeddings or hashed words, with their cosines in another range."""

    def __init__(self, rescale: Rescale, *, hashed: bool = False, model: str = "unlisted-model") -> None:
        super().__init__(model)
        self.operations: list[str] = []
        self._rescale = rescale
        self._hashed = hashed

    async def embed(self, texts: Sequence[str], *, operation: str, deadline: datetime) -> Embedded:
        self.operations.append(operation)
        embedded = await super().embed(texts, operation=operation, deadline=deadline)
        vectors = [embedding_of(text, 256) for text in texts] if self._hashed else embedded.vectors
        return Embedded([self._rescale(*pair) for pair in zip(texts, vectors, strict=True)], embedded.usage)


def soon() -> datetime:
    return datetime.now(UTC) + timedelta(seconds=10)


async def retrieved(parts: RagParts, prompt: str) -> list[str]:
    output = await parts.retrieval(task_for("t1", prompt, options=TaskOptions(rag_min_score=0.5)))
    return [chunk.document_id for chunk in output.chunks]


@pytest.mark.parametrize("rescale", [raised, lowered])
@pytest.mark.parametrize("hashed", [False, True], ids=["real", "hashed"])
async def test_unrelated_prompts_get_nothing_and_paraphrases_their_document(
    tmp_path: Path, rescale: Rescale, hashed: bool
) -> None:
    async with rag_parts(tmp_path, RescaledEmbeddings(rescale, hashed=hashed)) as parts:
        documents = {text: await parts.add("t1", text, text[2:7]) for text in (LEAVE, EXPENSES)}
        for prompt in UNRELATED:
            assert await retrieved(parts, prompt) == [], prompt
        for text, prompt in PARAPHRASES.items():
            assert await retrieved(parts, prompt) == [documents[text]], prompt


async def test_a_model_is_measured_once_by_all_replicas(tmp_path: Path) -> None:
    model = RescaledEmbeddings(raised)
    space = Space("unlisted-model", 257)
    async with rag_parts(tmp_path, model) as parts:
        replicas = [Calibrations(model, parts.store.calibrations) for _ in range(3)]
        scales = await asyncio.gather(*(one.scale_of(space, deadline=soon()) for one in replicas for _ in range(2)))
        assert model.operations == ["calibrate"]
        assert len(set(scales)) == 1
        assert scales[0].spaced.floor > 0.7
        later = Calibrations(model, parts.store.calibrations)
        assert await later.scale_of(space, deadline=soon()) == scales[0]
        assert model.operations == ["calibrate"]


async def test_no_tenant_pays_for_the_measurement(tmp_path: Path) -> None:
    async with rag_parts(tmp_path, RescaledEmbeddings(raised)) as parts:
        await parts.add("t1", LEAVE)
        output = await parts.retrieval(task_for("t1", "paid leave"))
        assert [use.embeddings for use in output.usage] == [1]
        assert [fact.embeddings for fact in parts.facts.usage.values()] == [1]
        assert len(parts.model.texts) > 50


async def test_the_default_is_used_until_the_model_can_be_measured(tmp_path: Path) -> None:
    model = RescaledEmbeddings(raised)
    space = Space("unlisted-model", 257)
    async with rag_parts(tmp_path, model) as parts:
        model.error = ModelUnavailable
        assert (await parts.calibrations.scale_of(space, deadline=soon())).spaced == calibration_of("unlisted-model")
        await parts.calibrations.scale_of(space, deadline=soon())
        assert model.operations == ["calibrate"], "the next attempt comes later"
        model.error = None
        parts.calibrations._retry_at.clear()
        assert (await parts.calibrations.scale_of(space, deadline=soon())).spaced.floor > 0.7


async def test_a_killed_replica_is_replaced_when_its_lease_is_over(tmp_path: Path) -> None:
    model = RescaledEmbeddings(raised)
    space = Space("unlisted-model", 257)
    async with rag_parts(tmp_path, model) as parts:
        scale = await parts.calibrations.scale_of(space, deadline=soon())
        [record] = await parts.store.calibrations.find({})
        killed = {"scale": None, "leaseUntil": "2026-11-01T00:00:00.000Z"}
        await parts.store.calibrations.update_one({"_id": record["_id"]}, {"$set": killed})
        assert await Calibrations(model, parts.store.calibrations).scale_of(space, deadline=soon()) == scale
        assert model.operations == ["calibrate", "calibrate"]


async def test_the_settings_of_an_operator_win(tmp_path: Path) -> None:
    model = RescaledEmbeddings(raised)
    async with rag_parts(tmp_path, model) as parts:
        both = Calibrations(model, parts.store.calibrations, floor=0.8, ceiling=0.9)
        assert (await both.scale_of(Space("m", 257), deadline=soon())).spaced == Calibration(0.8, 0.9)
        assert model.operations == []
        one = Calibrations(model, parts.store.calibrations, floor=0.8)
        scale = await one.scale_of(Space("unlisted-model", 257), deadline=soon())
        assert (scale.spaced.floor, scale.unspaced.floor) == (0.8, 0.8)
        assert 0.8 < scale.spaced.ceiling < 0.95


async def test_a_listed_model_is_not_measured(tmp_path: Path) -> None:
    model = RescaledEmbeddings(raised, model="text-embedding-3-small")
    async with rag_parts(tmp_path, model) as parts:
        scale = await parts.calibrations.scale_of(Space(model.model, 257), deadline=soon())
        assert scale.spaced == scale.unspaced == calibration_of(model.model)
        assert model.operations == []


async def test_a_model_that_does_not_distinguish_texts_matches_nothing_but_the_same_text(tmp_path: Path) -> None:
    async with rag_parts(tmp_path, RescaledEmbeddings(lambda text, _: raised(text, embedding_of(text, 1024)))) as parts:
        scale = await parts.calibrations.scale_of(Space("unlisted-model", 1025), deadline=soon())
        assert scale.unspaced.ceiling == 1.0
        assert scale.calibration_for("年假有多少天？") == scale.unspaced
        assert scale.calibration_for("How many days of leave?") == scale.spaced
