"""Clients that post marked upgrades and retry with the same idempotency key when a connection breaks."""

import asyncio
import time

import httpx

from shared.contracts.token_bounds import RECENT_MESSAGES
from tests.faults.evidence import Evidence
from tests.running_stack import ENDED, RunningStack

_AT_ONCE = 32
_POST_WITHIN_SECONDS = 60.0


def _body(marker: str) -> dict[str, object]:
    return {
        "userPrompt": f"Explain the leave policy of team {marker} to a new colleague in plain words",
        "conversationHistory": [
            {"role": "user", "content": f"We write a handbook for team {marker}."},
            *[{"role": "assistant", "content": "Which part of it comes first?"}] * RECENT_MESSAGES,
        ],
    }


async def post_marked(stack: RunningStack, client: httpx.AsyncClient, markers: list[str]) -> dict[str, str]:
    """Posts one upgrade per marker and returns their ids when all are accepted."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def post(marker: str) -> tuple[str, str]:
        deadline = time.monotonic() + _POST_WITHIN_SECONDS
        headers = {"Prefer": "respond-async", "Idempotency-Key": marker}
        async with gate:
            while True:
                try:
                    answer = await client.post("/api/upgrade", json=_body(marker), headers=headers)
                    if answer.status_code in (200, 202):
                        return marker, answer.json()["id"]
                    assert answer.status_code == 503, answer.text
                except httpx.TransportError:
                    pass
                assert time.monotonic() < deadline, f"{marker} was not accepted"
                await asyncio.sleep(0.1)

    return dict(await asyncio.gather(*(post(marker) for marker in markers)))


async def watch_ends(stack: RunningStack, client: httpx.AsyncClient, evidence: Evidence, within: float) -> None:
    """Reads every upgrade until all have ended, and adds each end seen to the evidence."""
    deadline = time.monotonic() + within
    waiting = set(evidence.upgrade_ids.values()) - set(evidence.ends_seen)
    while waiting and time.monotonic() < deadline:
        await read_ends(client, evidence, waiting)
        waiting -= set(evidence.ends_seen)
        await asyncio.sleep(0.2)


async def read_ends(client: httpx.AsyncClient, evidence: Evidence, upgrade_ids: set[str]) -> None:
    """Adds the ends of these upgrades to the evidence, for those that have ended."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def read(upgrade_id: str) -> None:
        async with gate:
            try:
                answer = await client.get(f"/api/upgrades/{upgrade_id}")
            except httpx.TransportError:
                return
            if answer.status_code == 200 and answer.json()["status"] in ENDED:
                end = (answer.json()["status"], answer.json()["completedAt"])
                evidence.ends_seen.setdefault(upgrade_id, set()).add(end)

    await asyncio.gather(*(read(upgrade_id) for upgrade_id in upgrade_ids))
