from datetime import timedelta

from services.upgrader.ending import original_after_failure, original_after_give_up, upgraded
from services.upgrader.results import completed_event_id, completed_fact, own_usage
from services.upgrader.rewriting.rewrite import Rewrite, RewriteFailed, request_for
from shared.contracts.upgrade_results import PromptVersion, UpgradeStatus
from shared.contracts.upgrade_tasks import (
    ComponentUsage,
    GivenUp,
    GiveUpReason,
    SealedText,
    Stage,
    StageOutput,
    UpgradeTask,
    UpgradeWarning,
)
from tests.unit.upgrade_fixtures import ACCEPTED_AT, make_chunk, make_task

NOW = ACCEPTED_AT + timedelta(seconds=2)
OWN = ComponentUsage(component="upgrader", operation="rewrite", model="m", tokens_in=10, tokens_out=5)
SEALED = SealedText(key_id="k", nonce="n", ciphertext="c")


def test_a_give_up_skips_to_the_end_and_never_back_to_its_own_stage() -> None:
    given_up = StageOutput(
        stage=Stage.RAG, given_up=GivenUp(stage="rag", reason=GiveUpReason.DEADLINE, detail="too late")
    )
    whole = make_task(itinerary=[Stage.SUMMARIZER, Stage.RAG, Stage.UPGRADER])
    assert whole.advanced(given_up).itinerary == [Stage.UPGRADER]
    assert make_task(itinerary=[Stage.RAG]).advanced(given_up).itinerary == []


def task_after_stages() -> UpgradeTask:
    task = make_task("Write a leave policy")
    summarized = StageOutput(
        stage=Stage.SUMMARIZER,
        usage=[ComponentUsage(component="summarizer", operation="summarize", tokens_in=3)],
        warnings=[UpgradeWarning(code="offline_model", detail="first")],
    )
    retrieved = StageOutput(
        stage=Stage.RAG,
        chunks=[make_chunk(1), make_chunk(2)],
        sealed_pii=SEALED,
        usage=[ComponentUsage(component="rag", operation="query", embeddings=1)],
    )
    return task.advanced(summarized).advanced(retrieved)


def made(**changes: object) -> Rewrite:
    fields: dict[str, object] = {
        "upgraded_prompt": "TASK",
        "reasoning": "because",
        "missing_questions": ("how long?",),
        "confidence": 0.7,
        "cited": (1,),
        "usage": OWN,
        "prompt": PromptVersion(name="upgrader", version=1),
        "warnings": (UpgradeWarning(code="offline_model", detail="second"),),
    }
    return Rewrite(**(fields | changes))  # type: ignore[arg-type]


def test_an_upgraded_prompt_carries_what_all_stages_used_and_warned_of() -> None:
    result = upgraded(request_for(task_after_stages()), made(), NOW)
    assert result.status == UpgradeStatus.UPGRADED
    assert [item.component for item in result.usage] == ["summarizer", "rag", "upgrader"]
    assert [citation.document_id for citation in result.citations] == ["document-2"]
    assert [warning.detail for warning in result.warnings] == ["first"]
    assert result.sealed_pii == [SEALED]
    assert result.latency_ms == 2000


def test_a_failed_rewrite_gives_the_prompt_back_and_pays_for_what_was_spent() -> None:
    failure = RewriteFailed("model_refused", "The model declined.", OWN)
    result = original_after_failure(request_for(task_after_stages()), failure, NOW)
    assert result.status == UpgradeStatus.ORIGINAL
    assert result.upgraded_prompt == "Write a leave policy"
    assert result.error is not None
    assert result.error.code == "model_refused"
    assert "model_unavailable" in [warning.code for warning in result.warnings]
    assert own_usage(result).usage == [OWN]


def test_a_late_upgrade_says_that_the_deadline_passed() -> None:
    given_up = GivenUp(stage="summarizer", reason=GiveUpReason.EXPIRED, detail="not ended in time")
    result = original_after_give_up(task_after_stages(), given_up, "en", NOW)
    assert result.status == UpgradeStatus.ORIGINAL
    assert "deadline_exceeded" in [warning.code for warning in result.warnings]
    assert own_usage(result).usage == []


def test_the_fact_is_public_it_holds_no_text_of_documents_and_no_sealed_map() -> None:
    result = upgraded(request_for(task_after_stages()), made(), NOW)
    key, fact = completed_fact(result)
    assert key == "tenant-a"
    assert set(fact.to_document()["citations"][0]) == {"documentId", "score"}
    assert "sealedPii" not in fact.to_document()
    assert fact.usage.embeddings == 1
    assert completed_event_id(result.upgrade_id) == completed_event_id(result.upgrade_id)
