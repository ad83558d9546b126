"""Documents from upload to deletion: indexed once, found by their own tenant only, and deleted completely."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from services.rag.documents.documents import DocumentDeleted, Upload
from services.rag.indexing.file_types import FileRejected
from services.rag.store import Space, ago
from shared.contracts.contract import new_id
from shared.llm.errors import ModelAnswerInvalid, ModelUnavailable
from tests.component.rag_parts import RagParts, rag_parts, task_for
from tests.unit.test_rag_files import handbook, pdf_of

KEEP_NOTHING = timedelta(milliseconds=1)
SPACE = Space("offline-embedding", 256)
LEAVE = "# Leave\n\nEmployees are entitled to 25 days of paid leave per calendar year.\n"
ROUTER = "# Router\n\nHold the button for ten seconds until the light turns amber to reset the router.\n"


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[RagParts]:
    async with rag_parts(tmp_path) as parts:
        yield parts


async def test_a_pdf_is_found_by_other_words(parts: RagParts) -> None:
    document = await parts.add(
        "t1", pdf_of("Employees are entitled to 25 days of paid leave per calendar year."), "Handbook", "handbook.pdf"
    )
    await parts.add("t1", ROUTER, "Router")
    view = await parts.documents.get("t1", document)
    assert view is not None
    assert (view.status, view.chunks, view.error, view.title) == ("indexed", 1, None, "Handbook")
    [(found, score, _), *_] = await parts.find("t1", "How many holidays a year does staff get?")
    assert found == document
    assert score > 0.5


async def test_docx_and_html_are_found(parts: RagParts) -> None:
    word = await parts.add("t1", handbook(), "Word", "a.docx")
    page = await parts.add("t1", "<html><h1>Returns</h1><p>Refunds within 30 days of purchase.</p>", "Page", "a.html")
    assert (await parts.find("t1", "days of paid leave"))[0][0] == word
    assert (await parts.find("t1", "refunds after a purchase"))[0][0] == page


async def test_unrelated_queries_score_low(parts: RagParts) -> None:
    await parts.add("t1", LEAVE + ROUTER)
    for query in ("write a poem about the sea", "Explain quantum entanglement to a child", "Sort a list in Python"):
        assert all(score < 0.3 for _, score, _ in await parts.find("t1", query)), query
    assert await parts.find("t1", "write a poem about the sea", min_score=0.3) == []


async def test_refused_files_leave_nothing(parts: RagParts) -> None:
    for data, name in ((b"", "a.txt"), (b"not one", "a.pdf"), (pdf_of("x", password="p"), "a.pdf")):
        with pytest.raises(FileRejected):
            await parts.documents.add(Upload("t1", data, "Bad", name))
    assert await parts.store.documents.count({}) == 0
    assert parts.submitted == []


async def test_a_document_without_text_fails_with_a_reason(parts: RagParts) -> None:
    document = await parts.add("t1", pdf_of(""), "Scan", "scan.pdf")
    view = await parts.documents.get("t1", document)
    assert view is not None
    assert view.status == "failed"
    assert "text recognition" in (view.error or "")
    [fact] = parts.facts.indexed_facts.values()
    assert (fact.status, fact.document_id) == ("failed", document)


async def test_the_same_document_id_is_one_document(parts: RagParts) -> None:
    wanted = new_id()
    upload = Upload("t1", LEAVE.encode(), "Leave", "a.md", document_id=wanted)
    first, second = await parts.documents.add(upload), await parts.documents.add(upload)
    assert first.id == second.id == wanted
    assert len(await parts.documents.list("t1", before="", limit=10)) == 1


async def test_a_deleted_document_does_not_come_back(parts: RagParts) -> None:
    upload = Upload("t1", LEAVE.encode(), "Leave", "a.md", document_id=new_id())
    await parts.documents.add(upload)
    submitted = len(parts.submitted)
    assert await parts.documents.delete("t1", upload.document_id)
    with pytest.raises(DocumentDeleted):
        await parts.documents.add(upload)
    assert len(parts.submitted) == submitted
    assert await parts.store.read_bytes(upload.document_id, 100) == b""
    assert await parts.documents.list("t1", before="", limit=10) == []


async def test_lists_are_newest_first_and_page(parts: RagParts) -> None:
    ids = [(await parts.documents.add(Upload("t1", f"text {n}".encode(), f"Title {n}"))).id for n in range(3)]
    first = await parts.documents.list("t1", before="", limit=2)
    second = await parts.documents.list("t1", before=first[-1].id, limit=2)
    assert [view.id for view in first + second] == ids[::-1]
    assert [view.title for view in second] == ["Title 0"]


async def test_redelivery_does_nothing_twice(parts: RagParts) -> None:
    document = await parts.add("t1", LEAVE)
    embedded = len(parts.model.texts)
    before = await parts.record(document)
    for _ in range(3):
        await parts.indexing.index("t1", document)
    assert len(parts.model.texts) == embedded
    assert await parts.record(document) == before
    assert len(parts.facts.indexed_facts) == 1
    assert sum(event.embeddings for event in parts.facts.usage.values()) == embedded


async def test_concurrent_deliveries_index_once(parts: RagParts) -> None:
    view = await parts.documents.add(Upload("t1", LEAVE.encode(), "Leave", "a.md"))
    await asyncio.gather(*(parts.indexing.index("t1", view.id) for _ in range(4)))
    assert (await parts.record(view.id))["status"] == "indexed"
    assert len(await parts.find("t1", "paid leave")) == 1
    assert parts.model.calls == 1 + 1  # one for the document, one for the query


class Killed(BaseException):
    """Simulates the kill of a process."""


async def test_a_kill_in_the_middle_shows_nothing_and_is_repaired(
    parts: RagParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.rag.indexing.index.BATCH_TEXTS", 2)
    text = "\n\n".join(f"# Rule {n}\n\nThe rule number {n} is about paid leave and overtime." for n in range(6))
    view = await parts.documents.add(Upload("t1", text.encode(), "Rules", "a.md"))
    real_add, added = parts.index.add, 0

    async def killed_in_the_third_batch(*args: Any, **options: Any) -> None:
        nonlocal added
        await real_add(*args, **options)
        added += 1
        if added == 3:
            raise Killed

    monkeypatch.setattr(parts.index, "add", killed_in_the_third_batch)
    with pytest.raises(Killed):
        await parts.indexing.index("t1", view.id)
    monkeypatch.setattr(parts.index, "add", real_add)
    await parts.add("t1", ROUTER)
    assert all(found != view.id for found, _, _ in await parts.find("t1", "rule about paid leave"))

    embedded = len(parts.model.texts)
    await parts.indexing.index("t1", view.id)
    assert (await parts.record(view.id))["chunks"] == 6
    # Everything was embedded before the kill and is in the cache.
    assert len([text for text in parts.model.texts[embedded:] if "rule number" in text.lower()]) == 0
    rows = await parts.index.search("t1", SPACE, vector=None, text="rule number", limit=50)
    assert len(rows) == 6


async def test_tenants_are_separate(parts: RagParts) -> None:
    mine = await parts.add("tenant-a", LEAVE)
    theirs = await parts.add("tenant-b", LEAVE.replace("25", "30"))
    assert {found for found, _, _ in await parts.find("tenant-a", "paid leave")} == {mine}
    assert {found for found, _, _ in await parts.find("tenant-b", "paid leave")} == {theirs}
    assert await parts.find("tenant-c", "paid leave") == []
    assert await parts.documents.get("tenant-a", theirs) is None
    assert await parts.documents.delete("tenant-a", theirs) is False
    assert [view.id for view in await parts.documents.list("tenant-a", before="", limit=10)] == [mine]
    # A message that names another tenant for a document gets nothing indexed or shown.
    await parts.indexing.index("tenant-a", theirs)
    assert {found for found, _, _ in await parts.find("tenant-a", "paid leave")} == {mine}


async def test_tenants_share_no_cached_vector(parts: RagParts) -> None:
    await parts.add("tenant-a", LEAVE)
    embedded = len(parts.model.texts)
    await parts.add("tenant-b", LEAVE)
    assert len(parts.model.texts) == 2 * embedded
    await parts.add("tenant-b", LEAVE)
    assert len(parts.model.texts) == 2 * embedded


async def test_ids_cannot_inject_into_a_filter(parts: RagParts) -> None:
    await parts.add("t1", LEAVE)
    with pytest.raises(ValueError, match="not an id"):
        await parts.index.delete_document("t1", SPACE, "x' OR '1'='1")
    assert await parts.documents.get("t1", "x' OR '1'='1") is None


def files_holding(folder: Path, *needles: bytes) -> list[str]:
    """Files under `folder` that hold one of the needles, in upper or lower case."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and any(needle.lower() in path.read_bytes().lower() for needle in needles)
    ]


async def test_deletion_is_complete(parts: RagParts, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = await parts.add("t1", ROUTER, "Router")
    gone = await parts.add("t1", LEAVE + "\nThe codeword is zanzibarium. Ask jane.doe@example.org.\n", "Leave")
    task = task_for("t1", "paid leave and the codeword zanzibarium")
    output = await parts.retrieval(task)
    assert gone in {chunk.document_id for chunk in output.chunks}
    await parts.outputs.record(task.upgrade_id, "t1", output.to_document(), [])
    assert files_holding(parts.folder / "lancedb", b"zanzibarium")

    assert await parts.documents.delete("t1", gone)
    assert all(found != gone for found, _, _ in await parts.find("t1", "paid leave zanzibarium"))
    repeated = await parts.outputs.find(task.upgrade_id)
    assert repeated is not None
    assert gone not in str(repeated["content"])
    assert await parts.documents.get("t1", gone) is None
    assert await parts.documents.delete("t1", gone) is False

    monkeypatch.setattr("services.rag.documents.sweep._PURGE_COMPLETE_SECONDS", -1)
    monkeypatch.setattr("services.rag.documents.sweep.KEEP_VERSIONS", KEEP_NOTHING)
    await parts.sweep.run()
    assert files_holding(parts.folder / "lancedb", b"zanzibarium") == []
    assert (await parts.record(gone))["purged"] is True
    assert await parts.store.read_bytes(gone, 100) == b""
    assert await parts.store.embeddings.count({"documentId": gone}) == 0
    stored = await parts.outputs.records.get(task.upgrade_id)
    assert stored is not None
    assert gone not in str(stored)
    assert (await parts.find("t1", "reset the router"))[0][0] == kept

    monkeypatch.setattr("services.rag.documents.sweep._KEEP_TOMBSTONE_SECONDS", -1)
    await parts.sweep.run()
    assert await parts.store.documents.get(gone) is None


async def test_the_last_document_can_go_and_another_come(parts: RagParts) -> None:
    document = await parts.add("t1", LEAVE)
    assert await parts.documents.delete("t1", document)
    assert not await parts.documents.exist("t1")
    await parts.sweep.purge_deleted()
    assert await parts.find("t1", "paid leave") == []
    again = await parts.add("t1", LEAVE)
    assert [found for found, _, _ in await parts.find("t1", "paid leave")] == [again]


async def test_deletion_during_indexing_wins(parts: RagParts, monkeypatch: pytest.MonkeyPatch) -> None:
    view = await parts.documents.add(Upload("t1", LEAVE.encode(), "Leave", "a.md"))
    real_add = parts.index.add

    async def deleted_meanwhile(*args: Any, **options: Any) -> None:
        assert await parts.documents.delete("t1", view.id)
        await real_add(*args, **options)

    monkeypatch.setattr(parts.index, "add", deleted_meanwhile)
    await parts.indexing.index("t1", view.id)
    monkeypatch.setattr(parts.index, "add", real_add)
    assert await parts.find("t1", "paid leave") == []
    assert await parts.index.search("t1", SPACE, vector=None, text="paid leave", limit=5) == []
    assert await parts.store.embeddings.count({"documentId": view.id}) == 0
    assert await parts.store.runs.count({}) == 0
    assert parts.facts.indexed_facts == {}
    # The usage counts although the run was undone.
    assert sum(event.embeddings for event in parts.facts.usage.values()) == 1


async def test_a_model_that_is_out_leaves_the_document_pending(parts: RagParts) -> None:
    parts.model.error = ModelUnavailable
    document = await parts.add("t1", LEAVE)
    assert (await parts.record(document))["status"] == "pending"
    await parts.sweep.run()
    assert len(parts.submitted) == 1  # not yet: it was submitted a moment ago
    await parts.store.documents.update_one({"_id": document}, {"$set": {"submittedAt": ago(300)}})
    await parts.sweep.run()
    assert [submitted.document_id for submitted in parts.submitted] == [document, document]
    parts.model.error = None
    await parts.indexing.index("t1", document)
    assert (await parts.record(document))["status"] == "indexed"


async def test_a_model_with_invalid_answers_fails_the_document(parts: RagParts) -> None:
    parts.model.error = ModelAnswerInvalid
    document = await parts.add("t1", LEAVE)
    for _ in range(4):
        assert (await parts.record(document))["status"] == "pending"
        await parts.indexing.index("t1", document)
    assert (await parts.record(document))["status"] == "failed"
    assert [fact.status for fact in parts.facts.indexed_facts.values()] == ["failed"]


async def test_a_document_that_is_pending_for_too_long_fails(parts: RagParts) -> None:
    view = await parts.documents.add(Upload("t1", LEAVE.encode(), "Leave", "a.md"))
    old = {"submittedAt": ago(7200), "createdAt": ago(7200)}
    await parts.store.documents.update_one({"_id": view.id}, {"$set": old})
    await parts.sweep.run()
    assert (await parts.record(view.id))["status"] == "failed"


async def test_unfinished_uploads_and_stale_runs_are_cleared(parts: RagParts) -> None:
    document = await parts.add("t1", LEAVE)
    record = await parts.record(document)
    orphan = new_id()
    unfinished = record | {"_id": orphan, "status": "receiving", "submittedAt": ago(7200), "generation": ""}
    await parts.store.documents.insert(unfinished)
    await parts.store.write_bytes("t1", orphan, b"left behind")
    for run in (record["generation"], new_id()):
        await parts.store.runs.insert({"_id": run, "tenantId": "t1", "documentId": document, "startedAt": ago(7200)})
    await parts.sweep.run()
    assert await parts.store.documents.get(orphan) is None
    assert await parts.store.read_bytes(orphan, 11) == b""
    assert await parts.store.runs.count({}) == 0
    assert [found for found, _, _ in await parts.find("t1", "paid leave")] == [document]


async def test_a_new_embedding_model_takes_over_without_a_gap(parts: RagParts) -> None:
    document = await parts.add("t1", LEAVE)
    parts.model.model = "another-embedding"
    await parts.add("t1", ROUTER)
    # The old vectors cannot be compared with the new query, its words still can.
    assert document in {found for found, _, _ in await parts.find("t1", "paid leave")}
    await parts.store.documents.update_one({"_id": document}, {"$set": {"submittedAt": ago(7200)}})
    parts.submitted.clear()
    await parts.sweep.run()
    assert [submitted.document_id for submitted in parts.submitted] == [document]
    await parts.indexing.index("t1", document)
    assert (await parts.record(document))["space"] == "another-embedding/256"
    results = await parts.find("t1", "holidays of employees per year")
    assert [found for found, _, _ in results].count(document) == 1


async def test_large_documents_are_indexed_in_batches(parts: RagParts) -> None:
    text = "\n\n".join(f"# Article {n}\n\nArticle {n} regulates matter number {n} of the union." for n in range(300))
    document = await parts.add("t1", text, "Treaty")
    assert (await parts.record(document))["chunks"] == 300
    assert parts.model.calls == 3
    assert "Article 217 " in (await parts.find("t1", "what does article 217 regulate"))[0][2]
