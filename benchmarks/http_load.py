"""A small HTTP/1.1 client for load: keep-alive connections that post one body after another, and nothing in between."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_ANSWER_WITHIN_SECONDS = 20.0


@dataclass
class Answers:
    """Seconds each answer took; only those with the status that was wanted are counted, others are errors."""

    seconds: list[float] = field(default_factory=list)
    elapsed: float = 0.0


async def post_for(
    port: int, path: str, headers: dict[str, str], body: Callable[[], bytes], *, connections: int, seconds: float
) -> Answers:
    """Posts on that many connections until `seconds` have passed. Raises RuntimeError for an answer that is no 202."""
    answers = Answers()
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    prefix = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n{head}".encode()
    started = time.perf_counter()

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while time.perf_counter() - started < seconds:
                content = body()
                begun = time.perf_counter()
                writer.write(prefix + b"Content-Length: %d\r\n\r\n" % len(content) + content)
                async with asyncio.timeout(_ANSWER_WITHIN_SECONDS):
                    await _read_accepted(reader)
                answers.seconds.append(time.perf_counter() - begun)
        finally:
            writer.close()

    await asyncio.gather(*(connection() for _ in range(connections)))
    answers.elapsed = time.perf_counter() - started
    return answers


async def _read_accepted(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    status, *lines = head.lower().split(b"\r\n")
    length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
    content = await reader.readexactly(length)
    if b" 202 " not in status:
        raise RuntimeError(f"{status!r}: {content[:500]!r}")
