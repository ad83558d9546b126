"""Probes that check whether a server on this machine answers. Each raises OSError or TimeoutError until it does."""

import asyncio
import struct

from deploy.local.ports import HOST

_TCP_TIMEOUT_SECONDS = 2.0
_HTTP_TIMEOUT_SECONDS = 3.0
_MAX_HTTP_ANSWER_BYTES = 64 * 1024
_MAX_DETAIL_CHARACTERS = 500
_KAFKA_API_VERSIONS = 18


class NotReady(ConnectionError):
    """The server answered with an HTTP status other than 200. `detail` is the beginning of the body."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"HTTP {status}: {detail}")
        self.detail = detail


async def port_answers(port: int) -> None:
    """Checks that connections to `port` are accepted."""
    _, writer = await asyncio.wait_for(asyncio.open_connection(HOST, port), _TCP_TIMEOUT_SECONDS)
    writer.close()


async def redis_answers(port: int) -> None:
    """Checks that Redis answers a PING, which it does not do while it loads its file."""
    if not (await _exchange(port, b"PING\r\n", 5)).startswith(b"+PONG"):
        raise ConnectionError("still loading")


async def kafka_answers(port: int) -> None:
    """Checks that a Kafka broker answers an ApiVersions request of version 0."""
    request = struct.pack(">hhih", _KAFKA_API_VERSIONS, 0, 1, -1)
    await _exchange(port, struct.pack(">i", len(request)) + request, 8)


async def http_ready(host: str, port: int, path: str = "/health/ready") -> None:
    """Checks that a GET of `path` returns 200. Raises NotReady on any other status."""
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\nAccept: application/json\r\n\r\n"
    async with asyncio.timeout(_HTTP_TIMEOUT_SECONDS):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(request.encode())
            answer = bytearray()
            while len(answer) < _MAX_HTTP_ANSWER_BYTES and (piece := await reader.read(8192)):
                answer += piece
        finally:
            writer.close()
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    try:
        status = int(head.split(b" ", 2)[1])
    except (IndexError, ValueError) as error:
        raise ConnectionError("not an HTTP answer") from error
    if status != 200:
        raise NotReady(status, body.decode(errors="replace")[:_MAX_DETAIL_CHARACTERS])


async def _exchange(port: int, request: bytes, answer_bytes: int) -> bytes:
    async with asyncio.timeout(_TCP_TIMEOUT_SECONDS):
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            writer.write(request)
            return await reader.readexactly(answer_bytes)
        except asyncio.IncompleteReadError as closed:
            raise ConnectionError("closed before it answered") from closed
        finally:
            writer.close()
