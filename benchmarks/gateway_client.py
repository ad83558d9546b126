"""A load client for the gateway: posts upgrades over keep-alive HTTP/1.1 connections, one at a time on each.

It is a minimal client, to leave the CPU to the gateway that is measured.
"""

import asyncio
import json
import time
from typing import Any

from benchmarks.pairs import percentile
from shared.contracts.contract import new_id
from tests.component.gateway_world import API_KEY

_ANSWER_WITHIN_SECONDS = 20.0


class Client:
    """The load client, which runs as a side process."""

    async def start(self) -> None: ...

    async def load(self, port: int, connections: int, seconds: float) -> dict[str, float]:
        """Posts on that many connections for `seconds`.

        Returns the number of requests, requests per second, and p50 and p99 of the response time in ms. Raises
        RuntimeError for a response other than 202.
        """
        response_seconds: list[float] = []
        prefix = (
            f"POST /api/upgrade HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            f"X-API-Key: {API_KEY}\r\nPrefer: respond-async\r\n"
        ).encode()
        started = time.perf_counter()

        async def connection() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                while time.perf_counter() - started < seconds:
                    content = _body()
                    sent = time.perf_counter()
                    writer.write(prefix + b"Content-Length: %d\r\n\r\n" % len(content) + content)
                    async with asyncio.timeout(_ANSWER_WITHIN_SECONDS):
                        await _read_accepted(reader)
                    response_seconds.append(time.perf_counter() - sent)
            finally:
                writer.close()

        await asyncio.gather(*(connection() for _ in range(connections)))
        elapsed = time.perf_counter() - started
        milliseconds = [1000 * taken for taken in response_seconds]
        return {
            "requests": float(len(milliseconds)),
            "per_second": len(milliseconds) / elapsed,
            "p50": percentile(milliseconds, 50),
            "p99": percentile(milliseconds, 99),
        }


async def _read_accepted(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    status, *lines = head.lower().split(b"\r\n")
    length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
    content = await reader.readexactly(length)
    if b" 202 " not in status:
        raise RuntimeError(f"{status!r}: {content[:500]!r}")


def _body() -> bytes:
    """Returns a conversation of about 1 KB that is unlike any other."""
    unique = new_id()
    body: dict[str, Any] = {
        "userPrompt": f"Explain to a new colleague how the paid leave of team {unique} is asked for, which form it "
        "needs, and how long an answer takes, in plain words and at most 300 of them. " + "Name the forms. " * 20,
        "conversationHistory": [
            {"role": "user", "content": "We write a handbook for the team; mail drafts to ann.lee@example.org please."},
            {"role": "assistant", "content": "Which part of it comes first? " + "I have an outline of it. " * 10},
        ],
        "userId": "person-17",
    }
    return json.dumps(body).encode()
