"""What a client has typed: with placeholders for personal values, and how long it is for the stages."""

import asyncio

from services.gateway.admission.holds import UpgradeInput
from shared.contracts.upgrade_http import UpgradeRequest
from shared.contracts.upgrade_tasks import ConversationMessage, UpgradeTask
from shared.privacy.redaction import PlaceholderMap, redact_all

_REDACTED_IN_THREAD_CHARACTERS = 20_000
_MESSAGE_FRAME = 16


async def redacted(request: UpgradeRequest, placeholders: PlaceholderMap) -> tuple[str, list[ConversationMessage]]:
    """Prompt and conversation without personal values, which go into `placeholders`."""
    if _characters(request) > _REDACTED_IN_THREAD_CHARACTERS:
        return await asyncio.to_thread(_redact, request, placeholders)
    return _redact(request, placeholders)


def input_of(request: UpgradeRequest, task: UpgradeTask) -> UpgradeInput:
    """Sizes as a stage may see them: with placeholders or, where redaction is off, with the values."""
    history = [*zip(request.conversation_history, task.conversation_history, strict=True)]
    return UpgradeInput(
        itinerary=task.itinerary,
        prompt_bytes=max(_bytes(request.user_prompt), _bytes(task.user_prompt)),
        prompt_characters=min(len(request.user_prompt), len(task.user_prompt)),
        history_bytes=sum(_MESSAGE_FRAME + max(_bytes(a.content), _bytes(b.content)) for a, b in history),
        documents=request.options.rag_top_k,
    )


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _characters(request: UpgradeRequest) -> int:
    return len(request.user_prompt) + sum(len(message.content) for message in request.conversation_history)


def _redact(request: UpgradeRequest, placeholders: PlaceholderMap) -> tuple[str, list[ConversationMessage]]:
    # History first: as a conversation grows its earlier messages keep their placeholders, and so their cached summary.
    # All at once: what a later text shows to be a secret is one in the earlier texts too.
    said = request.conversation_history
    *contents, prompt = redact_all([*(message.content for message in said), request.user_prompt], placeholders)
    history = [ConversationMessage(role=m.role, content=content) for m, content in zip(said, contents, strict=True)]
    return prompt, history
