"""The retrieve stage: finds the passages of a tenant's documents that belong to a prompt, and adds them redacted."""

import re
import time
from collections.abc import Iterable
from datetime import datetime, timedelta

import orjson

from services.rag.search.search import Found, HybridSearch, SearchResult
from services.rag.search.vector_index import IndexUnavailable
from services.rag.store import IndexRow
from shared.contracts.contract import now_utc
from shared.contracts.problems import WarningCode
from shared.contracts.token_bounds import QUERY_CHARACTERS
from shared.contracts.upgrade_tasks import (
    ComponentUsage,
    RetrievedChunk,
    SealedText,
    Stage,
    StageOutput,
    UpgradeTask,
    UpgradeWarning,
)
from shared.llm.client import ModelUsage
from shared.observability.logs import get_logger
from shared.privacy.placeholders import PLACEHOLDER, PlaceholderMap, restore
from shared.privacy.sealing import SealBroken, Vault

SHORT_PROMPT_CHARACTERS = 100
_TURNS_IN_CONTEXT = 2
_FACTS_IN_CONTEXT = 4
# Chunks below it would only distract the model.
MIN_SCORE = 0.1

log = get_logger(__name__)


def search_queries(task: UpgradeTask) -> list[str]:
    """The queries for a task: its prompt, and for a short prompt in a conversation also the prompt with its context.

    Both, because "and for contractors?" needs the context, whereas a short prompt on a new subject is found better
    without.
    """
    prompt = task.user_prompt.strip()
    queries = [prompt[:QUERY_CHARACTERS]]
    if len(prompt) <= SHORT_PROMPT_CHARACTERS:
        context = _context(task)
        if context:
            queries.append(f"{context}\n{prompt}"[:QUERY_CHARACTERS])
    return queries


def _context(task: UpgradeTask) -> str:
    """The summary of the conversation if there is one, else the last user turns."""
    output = task.output_of(Stage.SUMMARIZER)
    if output is not None and output.summary is not None and output.summary.goal.strip():
        return "\n".join([output.summary.goal, *output.summary.facts[:_FACTS_IN_CONTEXT]])
    turns = [message.content for message in task.conversation_history if message.role == "user"]
    return "\n".join(turns[-_TURNS_IN_CONTEXT:]).strip()


class Retrieval:
    """The work of the stage. Outages of model and index do not fail the upgrade; they add a warning."""

    def __init__(self, search: HybridSearch, vault: Vault, *, query_seconds: float) -> None:
        self._search = search
        self._vault = vault
        self._query_seconds = query_seconds

    async def __call__(self, task: UpgradeTask) -> StageOutput:
        """Returns the stage's output for a task. Raises StorageUnavailable."""
        started = time.monotonic()
        options = task.options
        try:
            result = await self._search.search(
                task.tenant_id,
                search_queries(task),
                top_k=options.rag_top_k,
                min_score=max(options.rag_min_score, MIN_SCORE),
                deadline=self._deadline(task),
                upgrade_id=task.upgrade_id,
            )
        except IndexUnavailable:
            return StageOutput(stage=Stage.RAG, warnings=[_skipped("The documents cannot be searched now.")])
        latency_ms = round((time.monotonic() - started) * 1000)
        placeholders = PlaceholderMap(task.placeholder_counts)
        chunks = self._chunks(task.tenant_id, result.found, placeholders)
        sealed = None
        if len(placeholders):
            sealed = self._vault.seal(placeholders.to_json(), tenant_id=task.tenant_id, subject_id=task.upgrade_id)
        return StageOutput(
            stage=Stage.RAG,
            chunks=chunks,
            sealed_pii=sealed,
            placeholder_counts=placeholders.counts(),
            usage=_usage(result, latency_ms),
            warnings=_warnings(result),
        )

    def _deadline(self, task: UpgradeTask) -> datetime:
        """Limits the time to embed the query, since the rewrite that follows needs time as well."""
        return min(task.deadline, now_utc() + timedelta(seconds=self._query_seconds))

    def _chunks(self, tenant_id: str, found: Iterable[Found], placeholders: PlaceholderMap) -> list[RetrievedChunk]:
        chunks = []
        for hit in found:
            try:
                values = open_values(self._vault, hit.row.sealed_pii, tenant_id, hit.row.document_id)
            except SealBroken:
                # Without its values, the text would contain placeholders that cannot be restored.
                log.error("chunk_seal_broken", document_id=hit.row.document_id)
                continue
            chunks.append(
                RetrievedChunk(
                    document_id=hit.row.document_id,
                    chunk_id=hit.row.chunk_id,
                    title=renumbered(hit.row.title, values, placeholders),
                    score=hit.score,
                    text=renumbered(_passage(hit.row), values, placeholders),
                )
            )
        return chunks


def renumbered(text: str, values: dict[str, str], placeholders: PlaceholderMap) -> str:
    """Replaces the document's placeholders in a redacted text by placeholders of the upgrade.

    Literal text that looks like a placeholder gets a placeholder of its own.
    """

    def replaced(match: re.Match[str]) -> str:
        value = values.get(match[0], match[0])
        if value == match[0]:
            return placeholders.placeholder_for_literal(match[1], int(match[2]))
        return placeholders.placeholder_for(match[1], value)

    return PLACEHOLDER.sub(replaced, text)


def as_uploaded(found: Found, vault: Vault, tenant_id: str) -> RetrievedChunk:
    """A hit with the text as uploaded, for the tenant that owns it. Raises SealBroken."""
    values = open_values(vault, found.row.sealed_pii, tenant_id, found.row.document_id)
    return RetrievedChunk(
        document_id=found.row.document_id,
        chunk_id=found.row.chunk_id,
        title=found.title,
        score=found.score,
        text=restore(_passage(found.row), values),
    )


def open_values(vault: Vault, sealed: str, tenant_id: str, document_id: str) -> dict[str, str]:
    """Returns the values behind a chunk's placeholders. Raises SealBroken."""
    if not sealed:
        return {}
    opened = vault.open(SealedText.model_validate_json(sealed), tenant_id=tenant_id, subject_id=document_id)
    values: dict[str, str] = orjson.loads(opened)
    return values


def _passage(row: IndexRow) -> str:
    """A chunk under its headings."""
    return f"{row.context}\n{row.text}" if row.context else row.text


def _usage(result: SearchResult, latency_ms: int) -> list[ComponentUsage]:
    used = result.usage
    if used is None and not result.all_cached:
        return []
    used = used or ModelUsage(model="")
    return [
        ComponentUsage(
            component="rag",
            operation="retrieve",
            model=used.model or None,
            tokens_in=used.tokens_in,
            tokens_out=used.tokens_out,
            embeddings=used.embeddings,
            cost_nano_usd=used.cost_nano_usd,
            latency_ms=latency_ms,
            cache_hit=result.all_cached,
        )
    ]


def _warnings(result: SearchResult) -> list[UpgradeWarning]:
    warnings = []
    if result.by_words and not result.found:
        warnings.append(_skipped("The embedding model is out, so the documents could not be searched by meaning."))
    elif result.by_words:
        detail = "The embedding model is out; the documents were searched by words alone."
        warnings.append(UpgradeWarning(code=WarningCode.MODEL_UNAVAILABLE, detail=detail))
    if result.usage is not None and not result.usage.price_known:
        detail = "The price of the embedding model is not known; its cost counts as 0."
        warnings.append(UpgradeWarning(code=WarningCode.PRICE_UNKNOWN, detail=detail))
    hidden = sum(1 for found in result.found if found.row.injections)
    if hidden:
        detail = f"Sentences that give orders to the model were left out of {hidden} of the documents' passages."
        warnings.append(UpgradeWarning(code=WarningCode.INJECTION_REMOVED, detail=detail))
    return warnings


def _skipped(detail: str) -> UpgradeWarning:
    return UpgradeWarning(code=WarningCode.RETRIEVAL_SKIPPED, detail=detail)
