"""How the upgrader asks a model, and what becomes of what it answers, against a scripted server."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta

import orjson
import pytest
from pydantic import SecretStr

from services.upgrader.ending import original_after_failure
from services.upgrader.rewriting.rewrite import Rewrite, RewriteFailed, request_for, rewrite
from services.upgrader.rewriting.rewrite_model import LlmRewriteModel
from shared.contracts.contract import now_utc
from shared.contracts.upgrade_results import UpgradeStatus
from shared.contracts.upgrade_tasks import Stage, StageOutput, Summary, TaskOptions, UpgradeTask
from shared.llm.client import ModelClient
from shared.llm.sections import parse_sections
from shared.llm.settings import ModelSettings
from shared.privacy.sealing import Vault
from shared.privacy.settings import PrivacySettings
from shared.service.repair_holds import OpenRepairHolds
from tests.model_server import ModelServer, Step
from tests.model_server import scripted_model as scripted_model
from tests.unit.upgrade_fixtures import make_task

VAULT = Vault.from_settings(PrivacySettings(vault_key=SecretStr("A" * 43 + "="), _env_file=None))
MAX_TOKENS = 2000


@pytest.fixture
async def model(scripted_model: ModelServer) -> AsyncIterator[LlmRewriteModel]:
    client = ModelClient(
        ModelSettings(openai_base_url=scripted_model.url, openai_model="scripted-chat", _env_file=None)
    )
    await client.start()
    yield LlmRewriteModel(client, VAULT, OpenRepairHolds(), MAX_TOKENS, temperature=0.2)
    await client.stop(0)


def current_task(prompt: str = "Write a haiku about rain", **changes: object) -> UpgradeTask:
    return make_task(prompt, deadline=now_utc() + timedelta(seconds=10), **changes)


async def rewritten(task: UpgradeTask, model: LlmRewriteModel) -> Rewrite:
    return await rewrite(request_for(task), model)


def answer_with(confidence: str) -> str:
    prompt = json.dumps("TASK: Write a haiku about rain.\nFORMAT: Three lines.")
    return (
        f'{{"upgraded_prompt": {prompt}, "reasoning": "", "missing_questions": [], "cited_documents": [], '
        f'"confidence": {confidence}}}'
    )


@pytest.mark.parametrize("confidence", ["NaN", "Infinity", "-Infinity", "1e999", '"NaN"'])
async def test_an_answer_whose_confidence_is_no_number_is_used_with_half_of_it(
    scripted_model: ModelServer, model: LlmRewriteModel, confidence: str
) -> None:
    scripted_model.script(Step(kind="text", text=answer_with(confidence)))
    assert (await rewritten(current_task(), model)).confidence == 0.5
    assert len(scripted_model.received("chat")) == 1


@pytest.mark.parametrize(("confidence", "kept"), [("7", 0.75), ("-1", 0.0)])
async def test_a_confidence_beyond_its_bounds_is_brought_within_what_the_checks_vouch_for(
    scripted_model: ModelServer, model: LlmRewriteModel, confidence: str, kept: float
) -> None:
    scripted_model.script(Step(kind="text", text=answer_with(confidence)))
    assert (await rewritten(current_task(), model)).confidence == kept


async def test_a_summary_stays_json_whatever_the_values_in_it_hold(
    scripted_model: ModelServer, model: LlmRewriteModel
) -> None:
    task = current_task("Rotate the key", options=TaskOptions(enable_pii_redaction=False))
    placeholders = {"startAfter": {}, "last": {"SECRET": 1}, "values": {"<SECRET_1>": 'pa"ss\\w0rd\n9'}}
    sealed = VAULT.seal(json.dumps(placeholders), tenant_id=task.tenant_id, subject_id=task.upgrade_id)
    task = task.model_copy(update={"sealed_pii": sealed})
    summary = Summary(goal="Rotate <SECRET_1>", facts=["It is <SECRET_1>."], tried=["mailing <SECRET_1>"])
    await rewritten(task.advanced(StageOutput(stage=Stage.SUMMARIZER, summary=summary)), model)
    sections = parse_sections(scripted_model.received("chat")[0].body["messages"][-1]["content"])
    shown = orjson.loads(sections["summary"])
    assert shown["goal"] == 'Rotate pa"ss\\w0rd\n9'
    assert shown["facts"] == ['It is pa"ss\\w0rd\n9.']
    assert shown["tried"] == ['mailing pa"ss\\w0rd\n9']


async def test_an_answer_cut_off_at_the_limit_gives_the_original_and_says_so(
    scripted_model: ModelServer, model: LlmRewriteModel
) -> None:
    scripted_model.script(Step(kind="length", times=2))
    task = current_task("word " * 2_000)
    with pytest.raises(RewriteFailed) as failure:
        await rewritten(task, model)
    result = original_after_failure(request_for(task), failure.value, now_utc())
    assert result.status == UpgradeStatus.ORIGINAL
    assert result.upgraded_prompt == task.user_prompt
    assert result.error is not None
    cut_off = f"The model's answer was cut off at its limit of {MAX_TOKENS} tokens."
    assert result.error.detail.startswith(f"{cut_off} Waited ")
    assert [warning.detail for warning in result.warnings] == [result.error.detail]
    assert result.usage[-1].tokens_in > 4_000


async def test_an_answer_cut_off_once_is_asked_for_more_briefly(
    scripted_model: ModelServer, model: LlmRewriteModel
) -> None:
    scripted_model.script(Step(kind="length"))
    made = await rewritten(current_task(), model)
    assert made.upgraded_prompt == "Upgraded (full): Write a haiku about rain\nFormat: plain text."
    assert "answer more briefly" in scripted_model.received("chat")[1].body["messages"][-1]["content"]
