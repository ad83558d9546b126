"""HTTP/1.1 protocol for uvicorn that limits the size and duration of a request head and ignores protocol upgrades."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httptools
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 30.0
REST_SECONDS = 10.0
# The largest body that any route accepts, so that a client that sends one can still read an early refusal.
REST_BYTES = 24 * 1024 * 1024
_LINGER_SECONDS = 1.0
_LINGER_BYTES = 4 * 1024 * 1024
_UPGRADE_HEADERS = (b"upgrade", b"http2-settings")

BadRequestAnswer = Callable[[str], Response]
"""Builds the response to an invalid request from a description of the problem."""


def limited_http(answer: BadRequestAnswer) -> type[HttpToolsProtocol]:
    """Returns the protocol class for uvicorn's `http` option.

    Responds with `answer` and closes the connection when the bytes are not HTTP, when a head exceeds 64 KiB, and when
    it is incomplete 30 s after its first bytes. Also closes it when the body of an answered request continues for more
    than 10 s or 24 MiB.
    """

    class Protocol(_LimitedHttp):
        _answer = staticmethod(answer)

    return Protocol


class _WithoutUpgrades(HttpToolsProtocol):
    """Handles a request that offers a protocol upgrade as if it did not.

    httptools stops parsing at such a request, so its head is parsed again without the upgrade headers. Subclasses
    override `on_request_head` and `on_request_complete`, which are called once per request.
    """

    _upgrade_offered = False

    def data_received(self, data: bytes) -> None:
        try:
            self._parse(memoryview(data))
        except httptools.HttpParserError:
            message = "Invalid HTTP request received."
            self.logger.warning(message)
            self.send_400_response(message)

    def on_headers_complete(self) -> None:
        self._upgrade_offered = self.parser.should_upgrade()
        if not self._upgrade_offered:
            self.on_request_head()

    def on_message_complete(self) -> None:
        if not self._upgrade_offered:
            self.on_request_complete()

    def on_request_head(self) -> None:
        super().on_headers_complete()

    def on_request_complete(self) -> None:
        super().on_message_complete()

    def _parse(self, data: memoryview) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                data = data[offer.args[0] :]
            if self.parser.get_method() == b"CONNECT":
                # An upgrade by its method, which no header can be removed from.
                raise httptools.HttpParserError("CONNECT is for proxies.")
            head = b"".join(self._head_without_upgrade())
            # The old parser would not parse further requests.
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            self.parser.feed_data(head)

    def _head_without_upgrade(self) -> Iterator[bytes]:
        version = self.parser.get_http_version().encode()
        yield b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)
        for name, value in self.headers:
            if name == b"connection":
                tokens = (token.strip() for token in value.split(b","))
                value = b", ".join(token for token in tokens if token.lower() not in _UPGRADE_HEADERS)
            if name not in _UPGRADE_HEADERS and (value or name != b"connection"):
                yield b"%b: %b\r\n" % (name, value)
        yield b"\r\n"


class _LimitedHttp(_WithoutUpgrades):
    _answer: BadRequestAnswer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_begun = False
        self._bytes_since_progress = 0  # since the last complete head, piece of body or request
        self._head_timer: asyncio.TimerHandle | None = None
        self._rest_timer: asyncio.TimerHandle | None = None
        self._refused = False
        self._discarded_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # uvicorn sets no time limit for the first request of a connection.
        self._start_idle_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_rest_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        room = MAX_HEAD_BYTES - self._bytes_since_progress
        if self._in_head and len(data) > room:
            # Fed separately, so that the limit is exact however the bytes arrive.
            self._feed(data[:room])
            data = data[room:]
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        if self._refused or self._rest_timer is not None:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > (_LINGER_BYTES if self._refused else REST_BYTES):
                self.transport.close()
        if self._refused or self.transport.is_closing():
            return
        self._bytes_since_progress += len(data)
        super().data_received(data)
        if self._bytes_since_progress >= MAX_HEAD_BYTES:
            self._refuse(f"The request line and the headers must not be longer than {MAX_HEAD_BYTES} bytes.")
        elif self._head_begun and self._head_timer is None:
            # Only for a head that arrives in several pieces, which is rare.
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_took_too_long)

    def on_message_begin(self) -> None:
        self._head_begun = True
        self._unset_keepalive_if_required()
        super().on_message_begin()

    def on_request_head(self) -> None:
        super().on_request_head()
        self._in_head = self._head_begun = False
        self._bytes_since_progress = 0
        self._stop_head_timer()

    def on_body(self, body: bytes) -> None:
        self._bytes_since_progress = 0
        super().on_body(body)

    def on_request_complete(self) -> None:
        self._in_head = True
        self._bytes_since_progress = 0
        super().on_request_complete()
        if self._rest_timer is not None:
            self._stop_rest_timer()
            self._start_idle_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._head_begun:
            # The next request has begun and has its own timer.
            self._unset_keepalive_if_required()
        elif not self._in_head and self.cycle.response_complete and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._rest_timer = self.loop.call_later(REST_SECONDS, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        self._refuse("The request is not valid HTTP.")

    def _head_took_too_long(self) -> None:
        self._refuse(f"The request line and the headers did not come in within {HEAD_SECONDS:.0f} s.")

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_rest_timer(self) -> None:
        self._discarded_bytes = 0
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None

    def _start_idle_timer(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _refuse(self, detail: str) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        cycle = self.cycle
        if self._in_head:
            if cycle is not None and not cycle.response_complete:
                # The previous request is still being answered; the connection closes after that response.
                cycle.keep_alive = False
                return
        elif cycle.response_started or self.pipeline:
            # The client could not tell a further response from part of another one.
            self.transport.close()
            return
        else:
            cycle.disconnected = True
            cycle.message_event.set()
        self._write(self._answer(detail))
        self._close_after_linger()

    def _close_after_linger(self) -> None:
        # Closing with unread data resets the connection, and a client that still sends would lose the response.
        self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _write(self, answer: Response) -> None:
        lines = [STATUS_LINE[answer.status_code]]
        for name, value in [*self.server_state.default_headers, *answer.raw_headers, (b"connection", b"close")]:
            lines += [name, b": ", value, b"\r\n"]
        self.transport.write(b"".join([*lines, b"\r\n", bytes(answer.body)]))
