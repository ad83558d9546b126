"""HTTP/1.1 as uvicorn reads it, where an offer to switch protocols is ignored (RFC 9110, 7.8).

Java's HttpClient and `curl --http2` offer h2c with every request. By itself the parser skips the body of such a
request, and what was the body is then run as the next one.
"""

from collections.abc import Iterator

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

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
