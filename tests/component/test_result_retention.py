"""What was said in upgrades is kept for RESULT_RETENTION_DAYS and no longer, in whichever store it is."""

from base64 import b64encode
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import MethodType
from typing import Any, cast

from pydantic import SecretStr

from services.gateway.upgrades.accepted_record import ERASED
from services.gateway.upgrades.erasure import Erasure
from services.rag.app import build_app as build_rag
from services.rag.documents.sweep import Sweep
from services.rag.settings import RagSettings
from services.rag.store import RagStore, ago
from services.summarizer.app import build_app as build_summarizer
from services.summarizer.settings import SummarizerSettings
from services.summarizer.summary_cache import StoredSummaryCache
from shared.contracts.contract import format_utc, id_floor, new_id, now_utc
from shared.contracts.upgrade_tasks import Summary
from shared.messaging.publish.outbox import FactOutbox
from shared.service.process import Component, Periodic
from tests.component.admission_parts import TENANT, admission_parts

DAY_SECONDS = 86_400
OLD = now_utc() - timedelta(days=2)


def settings(data_dir: Path) -> dict[str, Any]:
    return {
        "_env_file": None,
        "redis_url": SecretStr("redis://127.0.0.1:1"),
        "data_dir": data_dir,
        "vault_key": SecretStr(b64encode(b"v" * 32).decode()),
        "internal_token": SecretStr("internal-token-of-the-test"),
        "openai_base_url": "http://127.0.0.1:1/v1",
        "result_retention_days": 1,
    }


async def test_cached_summaries(tmp_path: Path) -> None:
    app = build_summarizer(SummarizerSettings(**settings(tmp_path), summarizer_cache_days=7))
    database = app.components[0]
    [cache] = [part for part in app.components if isinstance(part, StoredSummaryCache)]
    await database.start()
    try:
        for key in ("old", "new"):
            await cache.put("t", key, Summary(goal=key), "u")
        await cache._summaries.update_one({"_id": "t:old"}, {"$set": {"createdAt": format_utc(OLD)}})
        await cache.expire()
        assert list(await cache.find("t", ["old", "new"])) == ["new"]
    finally:
        await _stop(app.components)


async def test_what_rag_remembers_of_upgrades(tmp_path: Path) -> None:
    app = build_rag(RagSettings(**settings(tmp_path), rag_output_hours=24 * 30))
    database = app.components[0]
    sweep: Sweep = _worker(app.components, "rag sweep")
    outputs: FactOutbox = _worker(app.components, "fact sweep")
    store: RagStore = sweep._store
    await database.start()
    try:
        for id, created in (("old query", ago(2 * DAY_SECONDS)), ("query", ago(0))):
            await store.embeddings.insert({"_id": id, "tenantId": "t", "documentId": "", "createdAt": created})
        kept = new_id()
        for id in (id_floor(OLD), kept):
            await outputs.record(id, "t", {"chunks": []}, [])
        await sweep.expire()
        assert [found["_id"] for found in await store.embeddings.find({})] == ["query"]
        assert [found["_id"] for found in await outputs.records.find({})] == [kept]
    finally:
        await _stop(app.components)


async def test_records_that_cannot_be_deleted_yet_lose_what_was_said(tmp_path: Path) -> None:
    async with admission_parts(tmp_path) as parts:
        erased: list[str] = []

        class Holder:
            async def erase(self, tenant_id: str, upgrade_id: str) -> bool:
                erased.append(upgrade_id)
                return True

        erasure = Erasure(parts.store, ends=Holder(), others=[], clock=parts.clock)
        still_open, uncounted, closed = [parts.hold() for _ in range(3)]
        for hold in (still_open, uncounted, closed):
            await parts.store.insert(parts.record(hold))
        for hold in (uncounted, closed):
            await parts.end(hold, settle=False)
        await parts.store.mark_counted([closed.hold_id])
        parts.clock.move(days=2)
        young = parts.hold()
        await parts.store.insert(parts.record(young))

        assert await erasure.of_old(parts.clock.now - timedelta(days=1)) == 2
        assert await erasure.of_old(parts.clock.now - timedelta(days=1)) == 0
        assert await erasure.sweep() == 2
        assert sorted(erased) == sorted([still_open.hold_id, uncounted.hold_id])
        for hold in (still_open, uncounted):
            record = await parts.store.find(TENANT, hold.hold_id)
            assert record is not None
            assert record.first_task().user_prompt == ERASED
        # Those that can be deleted go whole; nobody had to erase them everywhere before.
        await parts.store.mark_counted([uncounted.hold_id])
        assert await parts.store.delete_closed(format_utc(parts.clock.now - timedelta(days=1))) == 2
        left = await parts.store.find(TENANT, young.hold_id)
        assert left is not None
        assert left.first_task().user_prompt == "p"


def _worker(components: Sequence[Component], job: str) -> Any:
    """What a periodic job of the app works on."""
    [periodic] = [part for part in components if isinstance(part, Periodic) and part.name == job]
    return cast(MethodType, periodic.job).__self__


async def _stop(components: Sequence[Component]) -> None:
    for component in reversed(components):
        await component.stop(1)
