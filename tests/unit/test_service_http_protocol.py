"""The HTTP server's limits on request heads, its handling of upgrade offers, and its responses to invalid HTTP."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request

from deploy.local.ports import free_port
from shared.service import http_protocol
from shared.service.http import bad_request
from shared.service.http_protocol import MAX_HEAD_BYTES, limited_http
from tests.conftest import eventually

HOST = b"Host: x\r\n"
GET = b"GET /held HTTP/1.1\r\n" + HOST
POST = b"POST /echo HTTP/1.1\r\n" + HOST
CHUNKING = b"Transfer-Encoding: chunked\r\n"
CHUNKED = POST + CHUNKING + b"\r\n"


class Server:
    """The protocol in front of an application that returns the size of the body, or responds on demand."""

    def __init__(self) -> None:
        self.port = free_port()
        self.answer_now = asyncio.Event()
        self.asked = asyncio.Event()
        self.deleted = 0
        app = FastAPI()

        @app.post("/echo")
        async def echo(request: Request) -> int:
            return sum([len(piece) async for piece in request.stream()])

        @app.get("/held")
        async def held() -> str:
            self.asked.set()
            await self.answer_now.wait()
            return "answered"

        @app.delete("/thing")
        async def delete() -> None:
            self.deleted += 1

        config = uvicorn.Config(app, port=self.port, http=limited_http(bad_request), log_config=None, lifespan="off")
        self.uvicorn = uvicorn.Server(config)
        self.uvicorn.capture_signals = contextlib.nullcontext  # type: ignore[assignment]

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def talk(self, *pieces: bytes) -> bytes:
        """Sends pieces one after another and returns all that the server sends until it closes."""
        async with self.connected() as (reader, writer):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            return await asyncio.wait_for(reader.read(), 10)

    async def in_turn(self, *pieces: bytes) -> bytes:
        """As `talk`, but each piece is read before the next is sent."""
        async with self.connected() as (reader, writer):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                # Its response shows that everything before it was read.
                await self.talk(POST + b"Connection: close\r\nContent-Length: 0\r\n\r\n")
            return await asyncio.wait_for(reader.read(), 10)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    running = Server()
    serving = asyncio.create_task(running.uvicorn.serve())

    async def started() -> bool:
        return running.uvicorn.started

    await eventually(started)
    yield running
    running.answer_now.set()
    running.uvicorn.should_exit = True
    await serving


def detail(answer: bytes) -> str:
    """The detail of the only problem response."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n"), answer
    assert b"connection: close" in head
    assert b"content-type: application/problem+json" in head
    problem = httpx.Response(400, content=body).json()
    assert problem["code"] == "invalid_header"
    return str(problem["detail"])


def head_of(size: int, start: bytes = POST) -> bytes:
    """A head of that many bytes, including its empty line."""
    end = b"Content-Length: 0\r\nConnection: close\r\n\r\n"
    return start + b"X-Filling: " + b"a" * (size - len(start) - len(end) - 13) + b"\r\n" + end


@pytest.mark.parametrize("body", [b"", b"x" * 300_000])
async def test_a_head_may_be_as_long_as_the_limit_and_no_longer(server: Server, body: bytes) -> None:
    for size, allowed in ((MAX_HEAD_BYTES, True), (MAX_HEAD_BYTES + 1, False)):
        head = head_of(size).replace(b"Content-Length: 0\r\n", b"Content-Length: %d\r\n" % len(body))
        head = head.replace(b"a" * (len(head) - size), b"", 1)
        for pieces in (
            [head + body],
            [head[:100], head[100:] + body],
            [*(bytes([b]) for b in head[:50]), head[50:] + body],
        ):
            answer = await server.talk(*pieces)
            if allowed:
                assert answer.endswith(b"\r\n\r\n%d" % len(body))
            else:
                assert "65536 bytes" in detail(answer)


@pytest.mark.parametrize(
    "start",
    [
        GET + b"X-Filling: ",
        b"GET /" ,
        GET + b"X-Filling",
        b"\r\n",
        CHUNKED + b"0\r\nX-Trailer: ",
    ],
)  # fmt: skip
async def test_an_endless_head_is_cut_off(server: Server, start: bytes) -> None:
    filling = b"\r\n" if start == b"\r\n" else b"a"
    sent = 0
    async with server.connected() as (_, writer):
        writer.write(start)
        with contextlib.suppress(ConnectionError):
            while sent < 100_000_000:
                writer.write(filling * 10_000)
                await writer.drain()
                sent += 10_000
    assert sent < 20_000_000  # discarded bytes, and what fits into the sockets' buffers


async def test_many_small_headers_count_together(server: Server) -> None:
    assert "65536 bytes" in detail(await server.talk(GET, *[b"X-Small: a\r\n" * 100] * 60))


async def test_a_slow_head_is_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.05)
    assert "did not come in within" in detail(await server.talk(GET[:10]))
    async with server.connected() as (reader, writer):
        # The second head begins in the same piece as the first request.
        writer.write(CHUNKED + b"3\r\nabc\r\n0\r\n\r\n" + GET[:10])
        answers = await asyncio.wait_for(reader.read(), 10)
    # If the first is answered late, its response is the last.
    first, _, second = answers.partition(b"HTTP/1.1 400")
    assert first.endswith(b"\r\n\r\n3")
    assert not second or "did not come in within" in detail(b"HTTP/1.1 400" + second)


async def test_a_connection_without_a_request_is_closed_as_an_idle_one(server: Server) -> None:
    server.uvicorn.config.timeout_keep_alive = 0
    assert await server.talk() == b""


@pytest.mark.parametrize(
    "garbage",
    [
        b"GARBAGE\r\n\r\n",
        GET + b"X-Odd: a\x00b\r\n\r\n",
        b"FOO /held HTTP/1.1\r\n" + HOST + b"\r\n",
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: 3\r\nContent-Length: 5\r\n\r\nabcde",
        POST + b"Content-Length: -1\r\n\r\n",
        CHUNKED + b"ZZ\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    ],
)
async def test_invalid_http_gets_a_problem_response(server: Server, garbage: bytes) -> None:
    assert detail(await server.talk(garbage)) == "The request is not valid HTTP."


@pytest.mark.parametrize("second", [b"GARBAGE\r\n\r\n", GET + b"X-Filling: " + b"a" * 200_000])
async def test_the_request_before_an_invalid_one_is_answered_last(server: Server, second: bytes) -> None:
    async with server.connected() as (reader, writer):
        writer.write(GET + b"\r\n" + second)
        await writer.drain()
        await asyncio.wait_for(server.asked.wait(), 10)
        # Everything before it has been read by then.
        assert (await server.talk(POST + b"Connection: close\r\nContent-Length: 0\r\n\r\n")).endswith(b"0")
        server.answer_now.set()
        answer = await asyncio.wait_for(reader.read(), 10)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b'\r\n\r\n"answered"')


async def test_an_answered_request_is_not_answered_again(server: Server) -> None:
    server.answer_now.set()
    async with server.connected() as (reader, writer):
        writer.write(GET + b"Transfer-Encoding: chunked\r\n\r\n")
        await asyncio.wait_for(reader.readuntil(b'"answered"'), 10)
        writer.write(b"ZZ\r\n")
        assert await asyncio.wait_for(reader.read(), 10) == b""


async def test_one_connection_serves_many_requests(server: Server) -> None:
    server.answer_now.set()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        for size in (0, 1, 70_000, 2_000_000) * 2:
            assert (await client.post("/echo", content=b"x" * size)).json() == size
            assert (await client.get("/held")).json() == "answered"
    pipelined = await server.talk(b"".join([GET + b"\r\n", POST + b"Content-Length: 2\r\n\r\nab"] * 3 + [head_of(500)]))
    assert pipelined.count(b"HTTP/1.1 200 OK") == 7


H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
WEBSOCKET = b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\n"
OFFERS = [H2C, WEBSOCKET, b"Connection: upgrade\r\nUpgrade: anything\r\n", b"Connection: Upgrade\r\n" + H2C]
SMUGGLED = b"DELETE /thing HTTP/1.1\r\n" + HOST + b"\r\n"
LAST = POST + b"Content-Length: 1\r\nConnection: close\r\n\r\nx"


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("whole", [True, False])
async def test_the_body_of_a_request_that_offers_an_upgrade_is_read_as_a_body(
    server: Server, caplog: pytest.LogCaptureFixture, offer: bytes, whole: bool
) -> None:
    chunked = b"%x\r\n" % len(SMUGGLED) + SMUGGLED + b"\r\n0\r\n\r\n"
    for framing, body in ((b"Content-Length: %d\r\n" % len(SMUGGLED), SMUGGLED), (CHUNKING, chunked)):
        head = POST + offer + framing + b"\r\n"
        answers = await server.talk(head + body + LAST) if whole else await server.in_turn(head, body, LAST)
        assert answers.count(b"HTTP/1.1 ") == answers.count(b"HTTP/1.1 200 OK") == 2
        assert b"\r\n\r\n%dHTTP/1.1 " % len(SMUGGLED) in answers
        assert answers.endswith(b"\r\n\r\n1")
        assert b"upgrade" not in answers.lower()
    assert server.deleted == 0
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


async def test_requests_that_offer_an_upgrade_may_follow_one_another(server: Server) -> None:
    server.answer_now.set()
    offering = GET + H2C + b"\r\n" + POST + WEBSOCKET + CHUNKING + b"\r\n3\r\nabc\r\n0\r\n\r\n"
    answers = await server.talk(offering * 2 + GET + b"\r\n" + LAST)
    assert answers.count(b"HTTP/1.1 200 OK") == 6
    assert await server.talk(*(bytes([byte]) for byte in offering + LAST))
    # Far more than the recursion limit.
    many = (POST + b"Connection: Upgrade\r\nUpgrade: x\r\n\r\n") * 2000
    assert (await server.talk(many + LAST)).count(b"HTTP/1.1 200 OK") == 2001


async def test_other_headers_of_an_upgrade_offer_are_kept(server: Server) -> None:
    closing = POST + b"Connection: close, Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    answers = await server.talk(closing + b"ab")
    assert answers.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert b"connection: close" in answers
    old = b"POST /echo HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nab"
    assert (await server.talk(old)).endswith(b"\r\n\r\n2")


async def test_a_head_with_an_upgrade_offer_has_the_same_limits(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = POST + b"Upgrade: h2c\r\nConnection: Upgrade\r\n"
    assert (await server.talk(head_of(MAX_HEAD_BYTES, start))).endswith(b"\r\n\r\n0")
    assert "65536 bytes" in detail(await server.talk(head_of(MAX_HEAD_BYTES + 1, start)))
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.05)
    assert "did not come in within" in detail(await server.talk(start))


LATE_BODY = GET + b"Content-Length: 10\r\n\r\n"


@pytest.mark.parametrize("head", [LATE_BODY, GET + CHUNKING + b"\r\n"])
async def test_the_rest_of_an_unread_body_has_a_time_limit(
    server: Server, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    monkeypatch.setattr(http_protocol, "REST_SECONDS", 0.2)
    server.answer_now.set()
    for rest in (b"", b"1"):
        async with server.connected() as (reader, writer):
            writer.write(head)
            await asyncio.wait_for(reader.readuntil(b'"answered"'), 10)
            writer.write(rest)
            assert await asyncio.wait_for(reader.read(), 10) == b""


async def test_data_does_not_extend_the_time_limit_of_an_unread_body(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "REST_SECONDS", 0.2)
    server.answer_now.set()
    async with server.connected() as (reader, writer):
        writer.write(GET + b"Content-Length: 1000000\r\n\r\n")
        await asyncio.wait_for(reader.readuntil(b'"answered"'), 10)

        async def closed() -> bool:
            writer.write(b"x")
            return reader.at_eof() or reader.exception() is not None

        await eventually(closed)


async def test_the_rest_of_an_unread_body_has_a_size_limit(server: Server) -> None:
    server.answer_now.set()
    async with server.connected() as (reader, writer):
        writer.write(GET + b"Content-Length: 1000000000\r\n\r\n")
        await asyncio.wait_for(reader.readuntil(b'"answered"'), 10)
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 100_000_000:
                writer.write(b"x" * 100_000)
                await writer.drain()
                sent += 100_000
    # Discarded bytes, and what fits into the sockets' buffers.
    assert sent < http_protocol.REST_BYTES + 16_000_000


async def test_a_connection_continues_after_an_unread_body(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "REST_BYTES", 1500)
    server.answer_now.set()
    async with server.connected() as (reader, writer):
        for _ in range(3):
            writer.write(GET + b"Content-Length: 1000\r\n\r\n")
            await asyncio.wait_for(reader.readuntil(b'"answered"'), 10)
            writer.write(b"x" * 1000)
        # The unread body has ended, and so have its limits.
        writer.write(LAST)
        assert (await asyncio.wait_for(reader.read(), 10)).endswith(b"\r\n\r\n1")


async def test_a_connection_is_idle_after_an_unread_body(server: Server) -> None:
    server.uvicorn.config.timeout_keep_alive = 1
    server.answer_now.set()
    async with server.connected() as (reader, writer):
        writer.write(LATE_BODY)
        await asyncio.wait_for(reader.readuntil(b'"answered"'), 10)
        writer.write(b"0123456789")
        assert await asyncio.wait_for(reader.read(), 5) == b""


async def test_empty_lines_between_requests_are_ignored(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.05)
    server.uvicorn.config.timeout_keep_alive = 1
    server.answer_now.set()
    assert await server.talk(b"\r\n") == b""
    async with server.connected() as (reader, writer):
        writer.write(POST + b"Content-Length: 1\r\n\r\nx\r\n")
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n1"), 10)).startswith(b"HTTP/1.1 200 OK")

        async def closed() -> bool:
            writer.write(b"\r\n")
            return reader.at_eof() or reader.exception() is not None

        # They do not keep the connection open either.
        await eventually(closed)


async def test_a_connection_with_a_begun_request_is_not_idle(server: Server) -> None:
    async with server.connected() as (reader, writer):
        writer.write(GET + b"\r\n" + LAST[:20])
        await asyncio.wait_for(server.asked.wait(), 10)
        [connection] = server.uvicorn.server_state.connections
        connection.timeout_keep_alive = 0  # type: ignore[union-attr]
        server.answer_now.set()
        await asyncio.wait_for(reader.readuntil(b'"answered"'), 10)
        await server.talk(LAST)
        writer.write(LAST[20:])
        assert (await asyncio.wait_for(reader.read(), 10)).endswith(b"\r\n\r\n1")
