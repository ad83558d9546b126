"""Measures a client's wait for an upgrade through all three stages, compared with the model calls alone."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.backends import KAFKA, model_environment, scripted_model
from benchmarks.pairs import Measured, Row, medians, paired, ratios
from shared.contracts.contract import new_id
from shared.contracts.token_bounds import RECENT_MESSAGES
from shared.llm.sections import render_sections
from tests.conftest import eventually
from tests.running_stack import RunningStack

CALL_SECONDS = 1.0
DOCUMENTS = 10
_UPGRADES_PER_RUN = 4
_INDEXED_WITHIN_SECONDS = 120.0
ROW = Row(
    "end-to-end",
    "s",
    f"A is the time from a client's POST to its 200, through the gateway and all three stages of the running stack: a "
    f"conversation, a tenant with {DOCUMENTS} documents, nothing cached, one upgrade at a time (median of "
    f"{_UPGRADES_PER_RUN}). B is the sum of the model calls alone, the same number and kinds, made one after the "
    f"other by a bare HTTP client; each takes the model {CALL_SECONDS:g} s.",
    goal=1.02,
    better="less",
)
ROWS = (ROW,)


async def measure(kind: str, chosen: Sequence[Row]) -> list[Measured]:
    """Measures the one row on one kind of broker."""
    with tempfile.TemporaryDirectory(prefix="bench-e2e-") as folder:
        async with scripted_model(CALL_SECONDS) as model:
            environment = model_environment(model)
            stack = RunningStack(Path(folder), cluster=kind == KAFKA, environment=environment)
            async with stack, stack.client() as client:
                await _add_documents(client)

                async def upgrades() -> Mapping[str, float]:
                    return {"seconds": median([await _upgrade(client) for _ in range(_UPGRADES_PER_RUN)])}

                async with httpx.AsyncClient(base_url=model, timeout=30.0) as bare:
                    pairs = await paired(upgrades, partial(_model_time, bare))
    return [Measured(ROW.on(kind), ROW, ratios(pairs, "seconds"), medians(pairs, "{seconds:.3f} s"))]


async def _model_time(client: httpx.AsyncClient) -> Mapping[str, float]:
    """Measures one summary, one embedding and one rewrite, in seconds."""
    summary = render_sections({"conversation": "user: We write a handbook.\n\nassistant: Which part comes first?"})
    rewrite = render_sections({"prompt": "Explain how paid leave is asked for", "mode": "full", "language": "en"})
    calls: list[tuple[str, dict[str, Any]]] = [
        ("chat/completions", {"model": "any", "messages": [{"role": "user", "content": summary}]}),
        ("embeddings", {"model": "any", "input": ["Explain how paid leave is asked for"]}),
        ("chat/completions", {"model": "any", "messages": [{"role": "user", "content": rewrite}]}),
    ]
    started = time.perf_counter()
    for path, body in calls:
        (await client.post(f"{client.base_url}{path}", json=body)).raise_for_status()
    return {"seconds": time.perf_counter() - started}


async def _add_documents(client: httpx.AsyncClient) -> None:
    ids = []
    for number in range(DOCUMENTS):
        text = "\n\n".join(
            f"Rule {number}.{rule}: paid leave of team {number} is asked for with form {rule} and answered in a week."
            for rule in range(10)
        )
        answer = await client.post("/api/documents", json={"title": f"Handbook {number}", "text": text})
        assert answer.status_code == 202, answer.text
        ids.append(answer.json()["id"])

    async def all_indexed() -> bool:
        found = [(await client.get(f"/api/documents/{document}")).json()["status"] for document in ids]
        assert "failed" not in found
        return set(found) == {"indexed"}

    await eventually(all_indexed, _INDEXED_WITHIN_SECONDS)


async def _upgrade(client: httpx.AsyncClient) -> float:
    """Measures one upgrade that is in no cache, in seconds."""
    unique = new_id()
    body = {
        "userPrompt": f"Explain to a new colleague how the paid leave of team {unique} is asked for, which form it "
        "needs, and how long an answer takes, in plain words and at most 300 of them",
        "conversationHistory": [
            {"role": "user", "content": f"We write a handbook for team {unique}."},
            *[{"role": "assistant", "content": "Which part of it comes first?"}] * RECENT_MESSAGES,
        ],
    }
    started = time.perf_counter()
    answer = await client.post("/api/upgrade", json=body, headers={"Prefer": "wait=30"})
    seconds = time.perf_counter() - started
    upgrade = answer.json()
    stages = [used["component"] for used in upgrade["usage"]["components"] if not used["cacheHit"]]
    assert (answer.status_code, upgrade["status"]) == (200, "upgraded"), answer.text
    assert stages == ["summarizer", "rag", "upgrader"], stages
    return seconds
