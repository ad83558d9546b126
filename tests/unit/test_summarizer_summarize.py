"""Summaries of conversations: what the model reads, what is cached, and what happens when the model fails."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from services.summarizer.summarize import (
    ModelSummary,
    SummaryFailed,
    conversation_keys,
    summarize,
)
from shared.contracts.token_bounds import SUMMARY_MESSAGES
from shared.contracts.upgrade_tasks import ComponentUsage, ConversationMessage, SealedText, Summary, UpgradeTask
from tests.unit.upgrade_fixtures import make_task

SEALED = SealedText(key_id="k", nonce="n", ciphertext="c")
USAGE = ComponentUsage(component="summarizer", operation="summarize", tokens_in=7)


class DictCache:
    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], Summary] = {}

    async def find(self, tenant_id: str, keys: Sequence[str]) -> dict[str, Summary]:
        return {key: self.entries[tenant_id, key] for key in keys if (tenant_id, key) in self.entries}

    async def put(self, tenant_id: str, key: str, summary: Summary, upgrade_id: str) -> None:
        self.entries[tenant_id, key] = summary


class CountingModel:
    """Counts its calls and records their arguments. The goal of a summary is the number of its call."""

    def __init__(self, fails: bool = False) -> None:
        self.calls: list[tuple[Summary | None, list[str]]] = []
        self.deadline: datetime | None = None
        self.fails = fails

    async def summarize(
        self, task: UpgradeTask, previous: Summary | None, messages: Sequence[ConversationMessage], deadline: datetime
    ) -> ModelSummary:
        self.calls.append((previous, [message.content for message in messages]))
        self.deadline = deadline
        if self.fails:
            raise SummaryFailed("The model is out.", USAGE)
        return ModelSummary(Summary(goal=f"call {len(self.calls)}"), USAGE)


def turns(count: int) -> list[tuple[str, str]]:
    return [("user" if i % 2 == 0 else "assistant", f"message {i}") for i in range(count)]


async def test_the_same_conversation_is_summarized_once() -> None:
    cache, model = DictCache(), CountingModel()
    await summarize(make_task("next", *turns(4)), cache, model, "v1")
    again = await summarize(make_task("another prompt", *turns(4)), cache, model, "v1")
    assert len(model.calls) == 1
    assert again.summary == Summary(goal="call 1")
    assert [(item.cache_hit, item.tokens_in) for item in again.usage] == [(True, 0)]


async def test_a_grown_conversation_starts_from_its_earlier_summary() -> None:
    cache, model = DictCache(), CountingModel()
    await summarize(make_task("next", *turns(4)), cache, model, "v1")
    await summarize(make_task("next", *turns(6)), cache, model, "v1")
    assert model.calls[1] == (Summary(goal="call 1"), ["message 4", "message 5"])


async def test_a_long_conversation_is_read_from_its_last_messages() -> None:
    model = CountingModel()
    await summarize(make_task("next", *turns(30)), DictCache(), model, "v1")
    assert model.calls[0][1] == [f"message {i}" for i in range(30 - SUMMARY_MESSAGES, 30)]


async def test_tenants_and_versions_share_no_summary() -> None:
    cache, model = DictCache(), CountingModel()
    await summarize(make_task("next", *turns(4)), cache, model, "v1")
    await summarize(make_task("next", *turns(4), tenant_id="tenant-b"), cache, model, "v1")
    await summarize(make_task("next", *turns(4)), cache, model, "v2")
    assert len(model.calls) == 3
    assert all(previous is None for previous, _ in model.calls)


async def test_a_failing_model_skips_the_summary_and_the_upgrade_continues() -> None:
    cache = DictCache()
    output = await summarize(make_task("next", *turns(4)), cache, CountingModel(fails=True), "v1")
    assert output.given_up is None
    assert output.summary is None
    assert [warning.code for warning in output.warnings] == ["summary_skipped"]
    assert output.usage == [USAGE]
    assert cache.entries == {}


async def test_later_stages_keep_a_share_of_the_time() -> None:
    model = CountingModel()
    task = make_task("next", *turns(2))
    now = task.deadline - timedelta(seconds=50)
    await summarize(task, DictCache(), model, "v1", clock=lambda: now)
    assert model.deadline == now + timedelta(seconds=20)


async def test_a_summary_with_new_sealed_values_is_not_cached() -> None:
    class InventiveModel(CountingModel):
        async def summarize(
            self,
            task: UpgradeTask,
            previous: Summary | None,
            messages: Sequence[ConversationMessage],
            deadline: datetime,
        ) -> ModelSummary:
            made = await super().summarize(task, previous, messages, deadline)
            return replace(made, sealed_additions=SEALED, placeholder_counts={"EMAIL": 4})

    cache = DictCache()
    task = make_task("next", *turns(2))
    output = await summarize(task, cache, InventiveModel(), "v1")
    assert cache.entries == {}
    assert output.sealed_pii == SEALED
    assert task.advanced(output).placeholder_counts == {"EMAIL": 4}


def test_conversations_that_look_alike_when_joined_have_different_keys() -> None:
    one = [ConversationMessage(role="user", content="a"), ConversationMessage(role="user", content="b")]
    other = [ConversationMessage(role="user", content="auser:1:b")]
    assert conversation_keys(one, "v")[-1] != conversation_keys(other, "v")[-1]
