"""Builds upgrade tasks and chunks for tests."""

from datetime import UTC, datetime, timedelta
from typing import Any

from shared.contracts.contract import new_id
from shared.contracts.upgrade_tasks import ConversationMessage, RetrievedChunk, Stage, UpgradeTask

ACCEPTED_AT = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def make_task(prompt: str = "Write a haiku about rain", *history: tuple[str, str], **changes: Any) -> UpgradeTask:
    """A task for the whole pipeline; `history` holds (role, content) pairs."""
    fields: dict[str, Any] = {
        "upgrade_id": new_id(),
        "tenant_id": "tenant-a",
        "user_ref": "u_1",
        "period": "2026-11",
        "created_at": ACCEPTED_AT,
        "deadline": ACCEPTED_AT + timedelta(seconds=60),
        "user_prompt": prompt,
        "conversation_history": [
            ConversationMessage.model_validate({"role": role, "content": content}) for role, content in history
        ],
        "itinerary": [Stage.SUMMARIZER, Stage.RAG, Stage.UPGRADER],
    }
    return UpgradeTask(**(fields | changes))


def make_chunk(number: int, text: str = "Paid leave is 28 days a year.") -> RetrievedChunk:
    return RetrievedChunk(
        document_id=f"document-{number}", chunk_id=f"chunk-{number}", title=f"Title {number}", score=0.8, text=text
    )
