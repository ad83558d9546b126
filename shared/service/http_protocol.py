"""HTTP/1.1 in uvicorn with limits on the size and duration of a request head, and without protocol switches."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httptools
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

_OFFER = (b"upgrade", b"http2-settings")


class OffersIgnored(HttpToolsProtocol):
    """Calls `on_request_head` and `on_request_complete` where uvicorn's has `on_headers_complete` and so on."""

    _offered = False

    def data_received(self, data: bytes) -> None:
        try:
            self._parse(memoryview(data))
        except httptools.HttpParserError:
            message = "Invalid HTTP request received."
            self.logger.warning(message)
            self.send_400_response(message)

    def on_headers_complete(self) -> None:
        self._offered = self.parser.should_upgrade()
        if not self._offered:
            self.on_request_head()

    def on_message_complete(self) -> None:
        if not self._offered:
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
                # For the parser this is an offer by itself, without which nothing is left.
                raise httptools.HttpParserError("CONNECT is for proxies.")
            head = b"".join(self._head_without_offer())
            # It would take whatever follows for no HTTP any more.
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            self.parser.feed_data(head)

    def _head_without_offer(self) -> Iterator[bytes]:
        version = self.parser.get_http_version().encode()
        yield b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)
        for name, value in self.headers:
            if name == b"connection":
                tokens = (token.strip() for token in value.split(b","))
                value = b", ".join(token for token in tokens if token.lower() not in _OFFER)
            if name not in _OFFER and (value or name != b"connection"):
                yield b"%b: %b\r\n" % (name, value)
        yield b"\r\n"


MAX_HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 30.0
REST_SECONDS = 10.0
# As much as the largest body that any route takes: who sends one and is refused at once still gets to see the answer.
REST_BYTES = 24 * 1024 * 1024
_LINGER_SECONDS = 1.0
_LINGER_BYTES = 4 * 1024 * 1024

BadRequestAnswer = Callable[[str], Response]
"""Makes the answer to what is no request, from what is wrong with it."""


def limited_http(answer: BadRequestAnswer) -> type[HttpToolsProtocol]:
    """The protocol for uvicorn's `http`.

    What is not HTTP, a head over 64 KiB, and one that is not there 30 s after its first bytes are answered with
    `answer`, and the connection ends. It also ends when the body of a request that has been answered goes on for
    another 10 s or 24 MiB.
    """

    class Protocol(_LimitedHttp):
        _answer = staticmethod(answer)

    return Protocol


class _LimitedHttp(OffersIgnored):
    _answer: BadRequestAnswer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_begun = False
        self._given_nothing_for = 0  # bytes
        self._head_timer: asyncio.TimerHandle | None = None
        self._rest_timer: asyncio.TimerHandle | None = None
        self._refused = False
        self._thrown_away = 0  # bytes

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # A connection that has not been used is an idle one. By itself uvicorn waits for its first byte for ever.
        self._wait_for_a_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_rest_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        room = MAX_HEAD_BYTES - self._given_nothing_for
        if self._in_head and len(data) > room:
            # Apart from what follows, so that a head is measured to the byte whatever it came in with.
            self._feed(data[:room])
            data = data[room:]
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        if self._refused or self._rest_timer is not None:
            self._thrown_away += len(data)
            if self._thrown_away > (_LINGER_BYTES if self._refused else REST_BYTES):
                self.transport.close()
        if self._refused or self.transport.is_closing():
            return
        self._given_nothing_for += len(data)
        super().data_received(data)
        if self._given_nothing_for >= MAX_HEAD_BYTES:
            self._refuse(f"The request line and the headers must not be longer than {MAX_HEAD_BYTES} bytes.")
        elif self._head_begun and self._head_timer is None:
            # Only for a head that did not come in one piece, which is rare.
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_took_too_long)

    def on_message_begin(self) -> None:
        self._head_begun = True
        self._unset_keepalive_if_required()
        super().on_message_begin()

    def on_request_head(self) -> None:
        super().on_request_head()
        self._in_head = self._head_begun = False
        self._given_nothing_for = 0
        self._stop_head_timer()

    def on_body(self, body: bytes) -> None:
        self._given_nothing_for = 0
        super().on_body(body)

    def on_request_complete(self) -> None:
        self._in_head = True
        self._given_nothing_for = 0
        super().on_request_complete()
        if self._rest_timer is not None:
            self._stop_rest_timer()
            self._wait_for_a_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._head_begun:
            # There is a request, which has its own timer.
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
        self._thrown_away = 0
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None

    def _wait_for_a_request(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _refuse(self, detail: str) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        cycle = self.cycle
        if self._in_head:
            if cycle is not None and not cycle.response_complete:
                # A request that came in before is being answered; that is the last thing said here.
                cycle.keep_alive = False
                return
        elif cycle.response_started or self.pipeline:
            # Another answer would be taken for a part of that one, for one more, or for the one before.
            self.transport.close()
            return
        else:
            cycle.disconnected = True
            cycle.message_event.set()
        self._write(self._answer(detail))
        self._close_softly()

    def _close_softly(self) -> None:
        # Closing with something unread resets the connection, and a client that is still sending never sees the answer.
        self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _write(self, answer: Response) -> None:
        lines = [STATUS_LINE[answer.status_code]]
        for name, value in [*self.server_state.default_headers, *answer.raw_headers, (b"connection", b"close")]:
            lines += [name, b": ", value, b"\r\n"]
        self.transport.write(b"".join([*lines, b"\r\n", bytes(answer.body)]))
