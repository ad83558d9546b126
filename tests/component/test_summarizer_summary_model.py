"""The summarizer's summary model against a scripted server."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta

import orjson
import pytest
from pydantic import SecretStr

from services.summarizer.summary_model import LlmSummaryModel
from shared.contracts.contract import now_utc
from shared.contracts.upgrade_tasks import Summary, TaskOptions
from shared.llm.client import ModelClient
from shared.llm.sections import parse_sections
from shared.llm.settings import ModelSettings
from shared.privacy.sealing import Vault
from shared.privacy.settings import PrivacySettings
from shared.service.repair_holds import OpenRepairHolds
from tests.model_server import ModelServer
from tests.model_server import scripted_model as scripted_model
from tests.unit.upgrade_fixtures import make_task

VAULT = Vault.from_settings(PrivacySettings(vault_key=SecretStr("A" * 43 + "="), _env_file=None))


@pytest.fixture
async def model(scripted_model: ModelServer) -> AsyncIterator[LlmSummaryModel]:
    client = ModelClient(
        ModelSettings(openai_base_url=scripted_model.url, openai_model="scripted-chat", _env_file=None)
    )
    await client.start()
    yield LlmSummaryModel(client, VAULT, OpenRepairHolds(), max_tokens=500)
    await client.stop(0)


async def test_an_earlier_summary_with_revealed_values_is_valid_json(
    scripted_model: ModelServer, model: LlmSummaryModel
) -> None:
    task = make_task("next", ("user", "Rotate <SECRET_1>."), options=TaskOptions(enable_pii_redaction=False))
    placeholders = {"startAfter": {}, "last": {"SECRET": 1}, "values": {"<SECRET_1>": 'pa"ss\\w0rd\n9'}}
    sealed = VAULT.seal(json.dumps(placeholders), tenant_id=task.tenant_id, subject_id=task.upgrade_id)
    task = task.model_copy(update={"sealed_pii": sealed})
    previous = Summary(goal="Rotate <SECRET_1>", facts=["It is <SECRET_1>."])
    await model.summarize(task, previous, task.conversation_history, now_utc() + timedelta(seconds=10))
    sections = parse_sections(scripted_model.received("chat")[0].body["messages"][-1]["content"])
    shown = orjson.loads(sections["previous_summary"])
    assert shown["goal"] == 'Rotate pa"ss\\w0rd\n9'
    assert shown["facts"] == ['It is pa"ss\\w0rd\n9.']
    assert sections["conversation"] == 'user: Rotate pa"ss\\w0rd\n9.'
