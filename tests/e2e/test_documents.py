"""Documents over the public API: upload, citation and deletion."""

import asyncio
import io
import time

import httpx
import pytest
from reportlab.lib.pagesizes import A4
from reportlab.pdfgen import canvas

from tests.running_stack import RunningStack

pytestmark = pytest.mark.xdist_group("offline stack")

POLICY = [
    "Employee handbook of the Blue Heron Company.",
    "Annual paid leave amounts to 27 working days for full-time staff.",
    "Unused days may be carried over until the end of March of the following year.",
    "Requests are made to the line supervisor at least two weeks ahead.",
]


def pdf(lines: list[str]) -> bytes:
    buffer = io.BytesIO()
    page = canvas.Canvas(buffer, pagesize=A4)
    for number, line in enumerate(lines):
        page.drawString(72, 760 - 20 * number, line)
    page.save()
    return buffer.getvalue()


async def indexed(client: httpx.AsyncClient, document_id: str) -> dict[str, object]:
    deadline = time.monotonic() + 30
    while True:
        document = (await client.get(f"/api/documents/{document_id}")).json()
        if document["status"] != "pending":
            return dict(document)
        assert time.monotonic() < deadline, document
        await asyncio.sleep(0.1)


async def test_a_pdf_is_cited_by_meaning_until_it_is_deleted(offline_stack: RunningStack) -> None:
    question = {"userPrompt": "How much vacation time do I get each year at our company?"}
    async with offline_stack.client() as client:
        upload = await client.post("/api/documents", files={"file": ("handbook.pdf", pdf(POLICY), "application/pdf")})
        assert upload.status_code == 202, upload.text
        document_id = upload.json()["id"]
        document = await indexed(client, document_id)
        assert document["status"] == "indexed", document

        upgraded = (await client.post("/api/upgrade", json=question)).json()
        assert [citation["documentId"] for citation in upgraded["citations"]] == [document_id]
        assert "27 working days" in upgraded["citations"][0]["text"]
        assert 0.0 < upgraded["citations"][0]["score"] <= 1.0

        found = await client.post("/api/documents/search", json={"query": "vacation", "topK": 5, "minScore": 0.0})
        assert [hit["documentId"] for hit in found.json()["items"]] == [document_id]

        assert (await client.delete(f"/api/documents/{document_id}")).status_code == 204
        gone = (await client.post("/api/upgrade", json=question)).json()
        assert gone["citations"] == []
        assert "27 working days" not in gone["upgradedPrompt"]
        found = await client.post("/api/documents/search", json={"query": "vacation", "topK": 5, "minScore": 0.0})
        assert found.json()["items"] == []
        assert (await client.get(f"/api/documents/{document_id}")).status_code == 404


@pytest.mark.parametrize(
    ("name", "content", "media_type", "status", "code"),
    [
        ("empty.txt", b"", "text/plain", 422, "invalid_request"),
        ("not.pdf", b"this is no PDF", "application/pdf", 422, "invalid_request"),
        ("program.exe", b"MZ\x90\x00\x03\x00\x00\x00", "application/octet-stream", 415, "unsupported_media_type"),
    ],
)
async def test_a_file_that_cannot_be_read_is_refused(
    offline_stack: RunningStack, name: str, content: bytes, media_type: str, status: int, code: str
) -> None:
    async with offline_stack.client() as client:
        before = (await client.get("/api/documents")).json()["items"]
        answer = await client.post("/api/documents", files={"file": (name, content, media_type)})
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        assert (await client.get("/api/documents")).json()["items"] == before
