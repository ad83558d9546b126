"""The gateway's small rules: headers, bodies, problems, placeholders in views, and stages of ended upgrades."""

import time
from datetime import UTC, datetime
from typing import Any

import pytest

from services.gateway.documents.uploads import _plain_name
from services.gateway.http.bodies import idempotency_key_of, parse, preference_of
from services.gateway.http.pages import read_cursor, write_cursor
from services.gateway.http.problem_details import field_path
from services.gateway.http.problems import ProblemError
from services.gateway.upgrades.accepted_record import AcceptedRecord
from services.gateway.upgrades.event_stream import stages_of
from services.gateway.upgrades.views import UpgradeViews, placeholder_warnings
from services.gateway.web.event_docs import event_page
from shared.contracts.contract import new_id
from shared.contracts.upgrade_http import UpgradeRequest
from shared.contracts.upgrade_results import UpgradeResult, UpgradeStatus
from shared.contracts.upgrade_tasks import ComponentUsage, RetrievedChunk, SummarizeTask, UpgradeWarning
from shared.privacy.placeholders import PlaceholderMap
from shared.privacy.redaction import redact
from shared.privacy.sealing import Vault
from tests.unit.upgrade_fixtures import make_task

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
VAULT = Vault([b"v" * 32])


def record_of(task: SummarizeTask, placeholders: PlaceholderMap | None = None) -> AcceptedRecord:
    sealed = None
    if placeholders:
        sealed = VAULT.seal(placeholders.to_json(), tenant_id=task.tenant_id, subject_id=task.upgrade_id)
    return AcceptedRecord(
        upgrade_id=task.upgrade_id,
        tenant_id=task.tenant_id,
        credential_id="key",
        user_ref=task.user_ref,
        key_hash=None,
        body_hash=None,
        period=task.period,
        created_at=task.created_at,
        deadline=task.deadline,
        task=task.model_dump_json(by_alias=True),
        sealed_pii=sealed,
        traceparent=None,
    )


def result_of(task: Any, **changes: Any) -> UpgradeResult:
    fields: dict[str, Any] = {
        "upgrade_id": task.upgrade_id,
        "tenant_id": task.tenant_id,
        "status": UpgradeStatus.UPGRADED,
        "user_prompt": task.user_prompt,
        "upgraded_prompt": task.user_prompt,
        "period": task.period,
        "created_at": task.created_at,
        "completed_at": NOW,
        "latency_ms": 5,
    }
    return UpgradeResult(**(fields | changes))


@pytest.mark.parametrize(
    ("headers", "seconds", "applied"),
    [
        ([], 30, "wait=30"),
        (["wait=5"], 5, "wait=5"),
        (["wait=0"], 0, "wait=0"),
        (["wait=61"], 60, "wait=60"),
        (["wait=99999999999999999999"], 30, "wait=30"),
        (["wait=-1"], 30, "wait=30"),
        (['wait="8"'], 8, "wait=8"),
        (["respond-async"], 0, "respond-async"),
        (["Respond-Async"], 0, "respond-async"),
        (["respond-async", "wait=3"], 3, "respond-async, wait=3"),
        (["wait=3, wait=9"], 3, "wait=3"),
        (["return=minimal; foo"], 30, "wait=30"),
    ],
)
def test_prefer(headers: list[str], seconds: int, applied: str) -> None:
    preference = preference_of(headers)
    assert (preference.wait_seconds, preference.applied) == (seconds, applied)


def test_idempotency_keys() -> None:
    assert idempotency_key_of([]) is None
    assert idempotency_key_of(["k 1"]) == "k 1"
    assert idempotency_key_of(["k" * 255]) == "k" * 255
    for wrong in (["k" * 256], [""], ["a", "b"], ["a\x7f"], ["é"]):
        with pytest.raises(ProblemError):
            idempotency_key_of(wrong)


def test_field_paths() -> None:
    assert field_path(("conversationHistory", 3, "role")) == "conversationHistory[3].role"
    assert field_path(("options", "ragTopK")) == "options.ragTopK"
    assert field_path(()) == "body"
    assert field_path(("a\x00b\n" + "x" * 900,)) == ("a�b�" + "x" * 196)


def test_no_error_repeats_what_was_sent() -> None:
    with pytest.raises(ProblemError) as refused:
        parse(UpgradeRequest, b'{"userPrompt": ["secret-value"], "userId": "' + b"s" * 200 + b'"}')
    texts = [error.detail for error in refused.value.errors]
    assert len(texts) == 2
    assert not any("secret-value" in text or "sss" in text or "pydantic" in text for text in texts)


def test_cursors() -> None:
    upgrade_id = new_id()
    assert read_cursor(write_cursor(upgrade_id)) == upgrade_id
    assert read_cursor(None) is None
    for wrong in ("", "!", "AAAA", "ключ"):
        with pytest.raises(ProblemError):
            read_cursor(wrong)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("a.pdf", "a.pdf"), ("../../etc/passwd", "passwd"), ("C:\\x\\y.docx", "y.docx"), ("a\x00\nb", "ab"), ("..", "..")],
)
def test_file_names(given: str, kept: str) -> None:
    assert _plain_name(given) == kept


def test_placeholders_are_restored_everywhere() -> None:
    placeholders = PlaceholderMap()
    prompt = redact("Write to ann@example.com", placeholders)
    assert prompt == "Write to <EMAIL_1>"
    task = SummarizeTask(**make_task(prompt).model_dump())
    stage_map = PlaceholderMap(start_after=placeholders.counts())
    chunk = RetrievedChunk(
        document_id="d",
        chunk_id="c",
        title=redact("From bob@example.com", stage_map),
        score=0.5,
        text=redact("bob@example.com and", stage_map),
    )
    added = VAULT.seal(stage_map.to_json(), tenant_id=task.tenant_id, subject_id=task.upgrade_id)
    result = result_of(
        task,
        reasoning="<EMAIL_1>",
        missing_questions=["Why <EMAIL_1>?"],
        citations=[chunk],
        sealed_pii=[added],
        warnings=[UpgradeWarning(code="x", detail="<EMAIL_2>")],
        error={"code": "y", "detail": "<EMAIL_1>"},
    )
    view = UpgradeViews(VAULT).of(record_of(task, placeholders), result)
    assert view.user_prompt == view.upgraded_prompt == "Write to ann@example.com"
    assert view.reasoning == "ann@example.com"
    assert view.missing_questions == ["Why ann@example.com?"]
    assert view.citations[0].title == "From bob@example.com"
    assert view.citations[0].text == "bob@example.com and"
    assert view.warnings[0].detail == "bob@example.com"
    assert view.error
    assert view.error.detail == "ann@example.com"


def test_without_its_values_an_upgrade_has_failed_and_shows_no_placeholders() -> None:
    placeholders = PlaceholderMap()
    task = SummarizeTask(**make_task(redact("Write to ann@example.com", placeholders)).model_dump())
    record = record_of(task, placeholders)
    view = UpgradeViews(Vault([b"o" * 32])).of(record, result_of(task))
    assert (view.status, view.user_prompt, view.upgraded_prompt) == (UpgradeStatus.FAILED, "", None)
    assert view.error
    assert view.error.code == "content_unreadable"


def test_an_original_is_not_blamed_for_placeholders() -> None:
    task = make_task("Write to <EMAIL_1>")
    original = result_of(task, status=UpgradeStatus.ORIGINAL, upgraded_prompt="nothing")
    assert placeholder_warnings(original, {}) == []


def test_stages_of_an_ended_upgrade() -> None:
    task = SummarizeTask(**make_task().model_dump())
    usage = [
        ComponentUsage(component="summarizer", operation="summarize", latency_ms=3),
        ComponentUsage(component="summarizer", operation="repair", latency_ms=4),
    ]
    result = result_of(task, usage=usage, warnings=[UpgradeWarning(code="retrieval_skipped", detail="")])
    assert [(p.stage, p.state, p.latency_ms) for p in stages_of(record_of(task), result)] == [
        ("summarizer", "finished", 7),
        ("rag", "skipped", None),
        ("upgrader", "finished", None),
    ]


def test_the_event_page_escapes_what_it_shows() -> None:
    document = {
        "info": {"title": "<b>Events</b>"},
        "channels": {
            "c": {"address": "a.v1", "messages": {"m": {"$ref": "#/components/messages/m"}}},
        },
        "components": {
            "messages": {"m": {"title": "M", "payload": {"$ref": "#/components/schemas/S"}}},
            "schemas": {
                "S": {
                    "properties": {"x": {"type": "array", "items": {"$ref": "#/components/schemas/T"}}},
                    "required": ["x"],
                }
            },
        },
    }
    page = event_page(document, {"a.v1": {"x": ["<i>"]}})
    assert "<b>" not in page
    assert "<i>" not in page
    assert "&lt;i&gt;" in page
    assert "a.v1" in page
    assert "list of T" in page


def test_a_body_made_of_errors_is_answered_quickly() -> None:
    body = b'{"userPrompt":"x",' + b",".join(b'"a%d":1' % number for number in range(100_000)) + b"}"
    started = time.monotonic()
    with pytest.raises(ProblemError) as refused:
        parse(UpgradeRequest, body)
    assert time.monotonic() - started < 10
    assert len(refused.value.errors) == 1
