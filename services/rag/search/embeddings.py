"""Embeds redacted texts, with a cache per tenant in front of the embedding model."""

import asyncio
import base64
import re
from array import array
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from services.rag.store import Space
from shared.contracts.contract import format_utc, now_utc
from shared.llm.client import Embedded, ModelUsage
from shared.observability.metrics import CACHE_REQUESTS
from shared.privacy.placeholders import PLACEHOLDER
from shared.privacy.sealing import Vault
from shared.storage.documents import Collection

_CACHE_NAME = "rag_embeddings"


class EmbeddingModel(Protocol):
    async def embed(self, texts: Sequence[str], *, operation: str, deadline: datetime) -> Embedded:
        """Returns one vector per text. Raises ModelError."""
        ...


@dataclass(frozen=True)
class Vectors:
    """Vectors in the order of their texts. `usage` is None when all came from the cache; `space` is None without texts.

    The caller must await `kept`, which ends when the new vectors are in the cache. It raises StorageUnavailable.
    """

    vectors: list[list[float]]
    space: Space | None
    usage: ModelUsage | None
    kept: Awaitable[None]


class Embeddings:
    """Embeds redacted texts. Cache keys are keyed hashes of tenant, model name and text, so they disclose none of them.

    `live_space` is the space of the model's last answer, None before the first. It may differ from the configured model
    name, because the server behind a name may change its model.
    """

    def __init__(self, model: EmbeddingModel, cache: Collection, vault: Vault, model_name: str) -> None:
        self._model = model
        self._cache = cache
        self._vault = vault
        self._model_name = model_name
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
        """Returns the vectors of `texts`. Raises ModelError and StorageUnavailable.

        New vectors are cached as part of the document `document_id`, else as queries of the upgrade `upgrade_id`.
        """
        ids = self._ids(tenant_id, texts)
        cached = await self._cached(ids)
        space, known = self._usable(cached)
        missing = {id: text for id, text in zip(ids, texts, strict=True) if id not in known}
        CACHE_REQUESTS.labels(_CACHE_NAME, "hit").inc(len(ids) - len(missing))
        CACHE_REQUESTS.labels(_CACHE_NAME, "miss").inc(len(missing))
        if not missing:
            return Vectors([known[id] for id in ids], space, None, _nothing_to_keep())
        embedded = await self._model.embed(list(missing.values()), operation=operation, deadline=deadline)
        usage = embedded.usage
        self.live_space = Space(usage.model, len(embedded.vectors[0]))
        fresh = dict(zip(missing, embedded.vectors, strict=True))
        if self.live_space != space and known:
            # The cached vectors are another model's and cannot be compared with the new ones.
            again = {id: text for id, text in zip(ids, texts, strict=True) if id in known}
            embedded = await self._model.embed(list(again.values()), operation=operation, deadline=deadline)
            fresh |= dict(zip(again, embedded.vectors, strict=True))
            usage = _sum(usage, embedded.usage)
        outdated = [id for id in fresh if id in cached]
        keeping = self._keep(tenant_id, document_id, upgrade_id, self.live_space, fresh, outdated)
        known |= fresh
        return Vectors([known[id] for id in ids], self.live_space, usage, asyncio.create_task(keeping))

    async def unknown(self, tenant_id: str, texts: Sequence[str]) -> list[str]:
        """Returns those of the texts that are not in the cache. Raises StorageUnavailable."""
        ids = self._ids(tenant_id, texts)
        _, known = self._usable(await self._cached(ids))
        return [text for id, text in zip(ids, texts, strict=True) if id not in known]

    def _ids(self, tenant_id: str, texts: Sequence[str]) -> list[str]:
        return [self._vault.keyed_hash("embedding", tenant_id, self._model_name, text) for text in texts]

    def _usable(self, cached: dict[str, tuple[Space, list[float]]]) -> tuple[Space | None, dict[str, list[float]]]:
        """The current space, and the cached vectors that belong to it."""
        space = self.live_space or next((found for found, _ in cached.values()), None)
        return space, {id: vector for id, (found, vector) in cached.items() if found == space}

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


def searchable(text: str) -> str:
    """The text as it is embedded and indexed: placeholders become the names of their kinds (`<EMAIL_1>` -> `email`)."""
    return re.sub(r"\s+", " ", PLACEHOLDER.sub(lambda match: match[1].lower().replace("_", " "), text)).strip()


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
