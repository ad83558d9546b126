"""Vectors of texts, from the tenant's cache where they are known and from the model where they are not."""

import asyncio
import base64
from array import array
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from services.rag.store import Space
from shared.contracts.contract import format_utc, now_utc
from shared.llm.client import Embedded, ModelUsage
from shared.observability.metrics import CACHE_REQUESTS
from shared.privacy.sealing import Vault
from shared.storage.documents import Collection

CACHE = "rag_embeddings"


class EmbeddingModel(Protocol):
    async def embed(self, texts: Sequence[str], *, operation: str, deadline: datetime) -> Embedded:
        """One vector per text. Raises ModelError."""
        ...


@dataclass(frozen=True)
class Vectors:
    """Vectors in the order of their texts. `usage` is None when all were known; `space` is None without texts.

    `kept` is done when the cache has the new ones: whoever asked awaits it in the end. Raises StorageUnavailable.
    """

    vectors: list[list[float]]
    space: Space | None
    usage: ModelUsage | None
    kept: Awaitable[None]


class Embeddings:
    """Embeds redacted texts. Cached per tenant by keyed hash, so that neither text nor tenant shows in the cache."""

    def __init__(self, model: EmbeddingModel, cache: Collection, vault: Vault, model_name: str) -> None:
        self._model = model
        self._cache = cache
        self._vault = vault
        self._model_name = model_name
        # What the model really answers with; the server behind one name may change, and its vectors with it.
        self.live_space: Space | None = None

    async def of(
        self,
        tenant_id: str,
        texts: Sequence[str],
        *,
        operation: str,
        deadline: datetime,
        document_id: str = "",
        upgrade_id: str = "",
    ) -> Vectors:
        """The vectors of `texts`; entries are kept for `document_id`, or as a query's (of `upgrade_id`) without one.

        Raises ModelError and StorageUnavailable.
        """
        ids = [self._vault.keyed_hash("embedding", tenant_id, self._model_name, text) for text in texts]
        cached = await self._cached(ids)
        space = self.live_space or next((found for found, _ in cached.values()), None)
        known = {id: vector for id, (found, vector) in cached.items() if found == space}
        missing = {id: text for id, text in zip(ids, texts, strict=True) if id not in known}
        CACHE_REQUESTS.labels(CACHE, "hit").inc(len(ids) - len(missing))
        CACHE_REQUESTS.labels(CACHE, "miss").inc(len(missing))
        if not missing:
            return Vectors([known[id] for id in ids], space, None, _nothing_to_keep())
        embedded = await self._model.embed(list(missing.values()), operation=operation, deadline=deadline)
        usage = embedded.usage
        self.live_space = Space(usage.model, len(embedded.vectors[0]))
        fresh = dict(zip(missing, embedded.vectors, strict=True))
        if self.live_space != space and known:
            # The cache is from before a change of model: its vectors cannot be compared with these.
            again = {id: text for id, text in zip(ids, texts, strict=True) if id in known}
            embedded = await self._model.embed(list(again.values()), operation=operation, deadline=deadline)
            fresh |= dict(zip(again, embedded.vectors, strict=True))
            usage = _sum(usage, embedded.usage)
        outdated = [id for id in fresh if id in cached]
        keeping = self._keep(tenant_id, document_id, upgrade_id, self.live_space, fresh, outdated)
        known |= fresh
        return Vectors([known[id] for id in ids], self.live_space, usage, asyncio.create_task(keeping))

    async def unknown(self, tenant_id: str, texts: Sequence[str]) -> list[str]:
        """Those of the texts that the model would have to be asked for. Raises StorageUnavailable."""
        ids = [self._vault.keyed_hash("embedding", tenant_id, self._model_name, text) for text in texts]
        cached = await self._cached(ids)
        space = self.live_space or next((found for found, _ in cached.values()), None)
        known = {id for id, (found, _) in cached.items() if found == space}
        return [text for id, text in zip(ids, texts, strict=True) if id not in known]

    async def _cached(self, ids: Sequence[str]) -> dict[str, tuple[Space, list[float]]]:
        return {
            entry["_id"]: (Space(entry["model"], entry["dimension"]), _unpacked(entry["vector"]))
            for entry in await self._cache.get_many(list(dict.fromkeys(ids)))
        }

    async def _keep(
        self,
        tenant_id: str,
        document_id: str,
        upgrade_id: str,
        space: Space,
        vectors: dict[str, list[float]],
        outdated: list[str],
    ) -> None:
        if outdated:
            await self._cache.delete_many({"_id": {"$in": outdated}})
        now = format_utc(now_utc())
        entries: list[dict[str, Any]] = [
            {
                "_id": id,
                "tenantId": tenant_id,
                "documentId": document_id,
                "model": space.model,
                "dimension": space.dimension,
                "vector": base64.b64encode(array("f", vector).tobytes()).decode(),
                "createdAt": now,
                **({"upgradeId": upgrade_id} if upgrade_id else {}),
            }
            for id, vector in vectors.items()
        ]
        await self._cache.insert_many_if_absent(entries)


async def _nothing_to_keep() -> None: ...


def _unpacked(vector: str) -> list[float]:
    numbers = array("f")
    numbers.frombytes(base64.b64decode(vector))
    return numbers.tolist()


def _sum(first: ModelUsage, second: ModelUsage) -> ModelUsage:
    return ModelUsage(
        model=second.model,
        tokens_in=first.tokens_in + second.tokens_in,
        tokens_out=first.tokens_out + second.tokens_out,
        embeddings=first.embeddings + second.embeddings,
        cost_nano_usd=first.cost_nano_usd + second.cost_nano_usd,
        price_known=first.price_known and second.price_known,
        latency_ms=first.latency_ms + second.latency_ms,
        offline=second.offline,
        attempts=first.attempts + second.attempts,
    )
