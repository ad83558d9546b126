"""A second answer of the model is asked for only with a hold of its own."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from services.upgrader.rewriting.rewrite import Rewrite, RewriteFailed, request_for, rewrite
from services.upgrader.rewriting.rewrite_model import LlmRewriteModel
from shared.contracts.contract import derived_id, now_utc
from shared.contracts.quota import SpentEvent
from shared.contracts.upgrade_tasks import Stage, UpgradeTask
from shared.llm.client import ModelClient
from shared.llm.settings import ModelSettings
from shared.privacy.sealing import Vault
from shared.privacy.settings import PrivacySettings
from shared.service.repair_holds import GatewayRepairHolds
from tests.component.gateway_stand_in import GatewayStandIn
from tests.model_server import ModelServer, Step
from tests.model_server import scripted_model as scripted_model
from tests.unit.upgrade_fixtures import make_task

VAULT = Vault.from_settings(PrivacySettings(vault_key=SecretStr("A" * 43 + "="), _env_file=None))
ECHO = '{"upgraded_prompt": "Write a haiku about rain"}'
NO_JSON = "Sure! A haiku about rain it is."


@pytest.fixture
async def gateway() -> AsyncIterator[GatewayStandIn]:
    async with GatewayStandIn().serving() as running:
        yield running


@pytest.fixture
async def holds(gateway: GatewayStandIn) -> AsyncIterator[GatewayRepairHolds]:
    made = GatewayRepairHolds(Stage.UPGRADER, gateway.url, "t" * 32)
    yield made
    await made.stop(0)


@pytest.fixture
async def model(scripted_model: ModelServer, holds: GatewayRepairHolds) -> AsyncIterator[LlmRewriteModel]:
    client = ModelClient(
        ModelSettings(openai_base_url=scripted_model.url, openai_model="scripted-chat", _env_file=None)
    )
    await client.start()
    yield LlmRewriteModel(client, VAULT, holds, 2000, temperature=0.2)
    await client.stop(0)


def current_task(**changes: Any) -> UpgradeTask:
    return make_task(deadline=now_utc() + timedelta(seconds=10), **changes)


async def rewritten(task: UpgradeTask, model: LlmRewriteModel) -> Rewrite:
    return await rewrite(request_for(task), model)


async def test_an_answer_that_can_be_used_takes_no_hold(
    gateway: GatewayStandIn, holds: GatewayRepairHolds, model: LlmRewriteModel
) -> None:
    task = current_task()
    await rewritten(task, model)
    await holds.end(task.upgrade_id, None)
    assert gateway.taken == {}
    assert gateway.ended == {}


@pytest.mark.parametrize("first", [ECHO, NO_JSON])
async def test_a_repair_holds_at_least_what_it_uses(
    gateway: GatewayStandIn, holds: GatewayRepairHolds, model: LlmRewriteModel, scripted_model: ModelServer, first: str
) -> None:
    scripted_model.script(Step(kind="text", text=first))
    task = current_task()
    made = await rewritten(task, model)
    assert made.repaired
    [hold] = gateway.taken.values()
    assert (hold.tenant_id, hold.period, hold.embeddings) == (task.tenant_id, task.period, 0)
    assert hold.lives_seconds <= 20
    second = scripted_model.received("chat")[1].body
    assert hold.tokens >= made.usage.tokens_in / 2 + second["max_tokens"]
    assert hold.tokens < 6_000
    spent = SpentEvent(event_id=derived_id(task.upgrade_id, "upgrader", "rewrite", "0"), tokens=90)
    await holds.end(task.upgrade_id, spent)
    assert gateway.ended == {hold.hold_id: [spent]}


@pytest.mark.parametrize("first", [ECHO, NO_JSON])
@pytest.mark.parametrize("why", ["no room", "gateway out"])
async def test_without_a_hold_the_model_is_not_asked_again(
    gateway: GatewayStandIn, model: LlmRewriteModel, scripted_model: ModelServer, first: str, why: str
) -> None:
    gateway.token_room = 100
    gateway.out = why == "gateway out"
    scripted_model.script(Step(kind="text", text=first))
    with pytest.raises(RewriteFailed) as failure:
        await rewritten(current_task(), model)
    assert failure.value.usage is not None
    assert failure.value.usage.tokens_in > 0
    assert len(scripted_model.received("chat")) == 1


async def test_evals_take_no_hold(gateway: GatewayStandIn, model: LlmRewriteModel, scripted_model: ModelServer) -> None:
    gateway.token_room = 0
    scripted_model.script(Step(kind="text", text=ECHO))
    assert (await rewritten(current_task(origin="eval"), model)).repaired
    assert gateway.taken == {}
