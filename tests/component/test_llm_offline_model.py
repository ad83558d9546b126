"""The offline model as a process, asked by the services' own client."""

import asyncio
import os
import socket
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
from pydantic import BaseModel, Field

from shared.contracts.contract import now_utc
from shared.llm.client import ChatMessage, ModelClient
from shared.llm.sections import render_sections
from shared.llm.settings import ModelSettings

T = TypeVar("T", bound=BaseModel)
MEGABYTE = 1024 * 1024
COMMAND = (sys.executable, "-m", "deploy.local.offline_model", "--port")


class PromptRewrite(BaseModel):
    upgraded_prompt: str
    reasoning: str
    missing_questions: list[str]
    confidence: float = Field(ge=0, le=1)
    cited_documents: list[int]


class ConversationSummary(BaseModel):
    goal: str
    facts: list[str]
    constraints: list[str]
    decisions: list[str]
    tried: list[str]


class Verdict(BaseModel):
    score: int = Field(ge=1, le=5)
    words: list[str]
    note: str | None


@pytest.fixture(scope="module")
async def process() -> AsyncIterator[asyncio.subprocess.Process]:
    started = await asyncio.create_subprocess_exec(*COMMAND, "0", stdout=PIPE, stderr=PIPE)
    try:
        yield started
    finally:
        started.terminate()
        async with asyncio.timeout(10):
            await started.communicate()
        assert started.returncode == 0


@pytest.fixture(scope="module")
async def url(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        return (await process.stdout.readline()).decode().strip()


@pytest.fixture
async def client(url: str) -> AsyncIterator[ModelClient]:
    settings = ModelSettings(
        openai_base_url=url, openai_model="offline-rules-1", openai_embedding_model="offline-wordllama-256"
    )
    started = ModelClient(settings)
    await started.start()
    yield started
    await started.stop(1)


async def ask(client: ModelClient, output: type[T], sections: dict[str, str]) -> T:
    messages = [ChatMessage("system", "Do it."), ChatMessage("user", render_sections(sections))]
    completion = await client.complete(
        operation="test",
        messages=messages,
        output=output,
        max_tokens=2000,
        temperature=0,
        deadline=now_utc() + timedelta(seconds=20),
    )
    assert completion.usage.model == "offline-rules-1"
    assert completion.usage.offline
    assert completion.usage.price_known
    assert completion.usage.tokens_in > 0
    assert completion.usage.tokens_out > 0
    assert completion.usage.cost_nano_usd == 0
    return completion.value


async def test_a_prompt_becomes_a_structured_one(client: ModelClient) -> None:
    sections = {"mode": "full", "language": "en", "prompt": "write a email to my boss <EMAIL_1> about 3 days off"}

    rewrite = await ask(client, PromptRewrite, sections)

    assert "ROLE\n" in rewrite.upgraded_prompt
    assert rewrite.upgraded_prompt.count("<EMAIL_1>") == 1
    assert "offline model" in rewrite.reasoning


async def test_a_conversation_becomes_a_summary(client: ModelClient) -> None:
    conversation = (
        "user: Explain photosynthesis to my class of 24 pupils, max 200 words.\n\nassistant: Plants use light."
    )

    summary = await ask(client, ConversationSummary, {"conversation": conversation, "language": "en"})

    assert "photosynthesis" in summary.goal
    assert any("200 words" in constraint for constraint in summary.constraints)


async def test_an_unknown_schema_gets_empty_values(client: ModelClient) -> None:
    verdict = await ask(client, Verdict, {"question": "?"})

    assert verdict == Verdict(score=1, words=[], note=None)


async def test_embeddings_know_what_is_near(client: ModelClient) -> None:
    texts = [
        "How much vacation do I get?",
        "Employees receive 25 days of paid leave.",
        "The cafeteria opens at 8.",
        "",
    ]

    embedded = await client.embed(texts, operation="embed", deadline=now_utc() + timedelta(seconds=20))

    question, leave, cafeteria, empty = embedded.vectors
    assert [len(vector) for vector in embedded.vectors] == [256] * 4
    assert _dot(question, leave) > 0.25 > _dot(question, cafeteria)
    assert sum(value * value for value in question) == pytest.approx(1, abs=1e-5)
    assert embedded.usage.model == "offline-wordllama-256"
    assert embedded.usage.embeddings == 4
    assert len(empty) == 256


async def test_it_speaks_the_rest_of_the_protocol(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as http:
        models = (await http.get("/models")).json()
        plain = (await http.post("/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]})).json()
        floats = (await http.post("/embeddings", json={"input": "hi"})).json()
        object_asked = await http.post(
            "/chat/completions",
            json={
                "messages": [
                    {"role": "user", "content": render_sections({"conversation": "user: Plan a trip to Hue."})}
                ],
                "response_format": {"type": "json_object"},
            },
        )

    assert {model["id"] for model in models["data"]} == {"offline-rules-1", "offline-wordllama-256"}
    assert "offline model" in plain["choices"][0]["message"]["content"]
    assert isinstance(floats["data"][0]["embedding"][0], float)
    assert '"goal":"Plan a trip to Hue."' in object_asked.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat/completions", b"{"),
        ("/chat/completions", b"{}"),
        ("/chat/completions", b'{"messages": []}'),
        ("/chat/completions", b'{"messages": [{"role": "user", "content": "x"}], "stream": true}'),
        ("/embeddings", b'{"input": []}'),
        ("/embeddings", b'{"input": 7}'),
    ],
)
async def test_a_wrong_request_is_refused(url: str, path: str, body: bytes) -> None:
    async with httpx.AsyncClient(base_url=url) as http:
        answer = await http.post(path, content=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_it_stays_lean(process: asyncio.subprocess.Process, client: ModelClient) -> None:
    long_text = "The quick brown fox jumps over the lazy dog. " * 2000
    await client.embed([long_text] * 4, operation="embed", deadline=now_utc() + timedelta(seconds=20))

    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])

    assert pages * os.sysconf("SC_PAGE_SIZE") < 160 * MEGABYTE


async def test_a_taken_port_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        started = await asyncio.create_subprocess_exec(*COMMAND, str(port), stdout=PIPE, stderr=PIPE)
        async with asyncio.timeout(30):
            _, errors = await started.communicate()

    assert started.returncode == 2
    assert errors.decode().count("\n") == 1
    assert f"{port} (--host, --port) is taken" in errors.decode()


def _dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
