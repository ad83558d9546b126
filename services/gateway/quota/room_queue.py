"""Lets an upgrade wait a moment for quota that only open holds occupy.

A hold is larger than what its upgrade uses. Near the limit of a month an upgrade may not fit beside the open holds, and
fit as soon as some of them have become real use. Such upgrades wait in line, per tenant and replica.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

WAIT_SECONDS = 5.0
_MOST_WAITING = 300
_PAUSE_SECONDS = 0.03


@dataclass
class _Line:
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class RoomQueue:
    """First come, first served. Only the first of a line asks again, so that waiting costs one script call a pause."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str], _Line] = {}

    async def wait(self, tenant_id: str, period: str, seconds: float, ask_again: Callable[[], Awaitable[bool]]) -> None:
        """Calls `ask_again` until it returns True, for at most `seconds`. Returns at once when the line is full."""
        key, until = (tenant_id, period), time.monotonic() + seconds
        line = self._lines.setdefault(key, _Line())
        if line.waiting >= _MOST_WAITING:
            return
        line.waiting += 1
        try:
            async with asyncio.timeout(seconds):
                await line.turn.acquire()
        except TimeoutError:
            return
        else:
            try:
                # No call is cancelled when time is over: it may have taken the hold.
                while not await ask_again():
                    if time.monotonic() >= until:
                        return
                    await asyncio.sleep(_PAUSE_SECONDS)
            finally:
                line.turn.release()
        finally:
            line.waiting -= 1
            if not line.waiting:
                self._lines.pop(key, None)
