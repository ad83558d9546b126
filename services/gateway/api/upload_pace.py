"""How fast an upload has to come in: slowly is fine, not at all is not."""

import asyncio

from starlette.types import Message, Receive

PATIENCE_SECONDS = 30.0
LEAST_BYTES_PER_SECOND = 64 * 1024


class Pace:
    """How long the next bytes of an upload may take. Times are seconds of one clock.

    Nobody may be silent for more than 30 s, and each second beyond the first 30 has to bring 64 KiB on average: 20 MiB
    have almost six minutes.
    """

    def __init__(self, started: float) -> None:
        self._ends = started + PATIENCE_SECONDS

    def took(self, size: int) -> None:
        """So many bytes have come in."""
        self._ends += size / LEAST_BYTES_PER_SECOND

    def seconds_left(self, now: float) -> float:
        """For the next bytes; 0 or less when there is no time left."""
        return min(PATIENCE_SECONDS, self._ends - now)


class PacedBody:
    """Passes a request's messages on for as long as they keep up with the pace."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._clock = asyncio.get_running_loop().time
        self._pace = Pace(self._clock())

    async def receive(self) -> Message:
        """The next message. Raises TimeoutError."""
        async with asyncio.timeout(self._pace.seconds_left(self._clock())):
            message = await self._receive()
        self._pace.took(len(message.get("body", b"")))
        return message


def longest_seconds(size: int) -> float:
    """How long so many bytes may take in all."""
    return PATIENCE_SECONDS + size / LEAST_BYTES_PER_SECOND
