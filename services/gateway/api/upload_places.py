"""How many uploads there may be at a time: each is held in memory whole."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary

from services.gateway.api.upgrade_reads import unavailable

_PLACES = 8
# By workspace and by person: somebody may be in many workspaces, and a workspace has many people. Four people who share
# none can still hold all places, each for as long as an upload may take.
_PLACES_OF_ONE = 2
_TURN_SECONDS = 10.0


class UploadPlaces:
    """`places` in all, and of them at most `of_one` under each name."""

    def __init__(
        self,
        *,
        places: int = _PLACES,
        of_one: int = _PLACES_OF_ONE,
        wait_seconds: float = _TURN_SECONDS,
    ) -> None:
        self._all = asyncio.Semaphore(places)
        self._of_one = of_one
        # Of those who have a place or wait for one.
        self._own: WeakValueDictionary[tuple[int, str], asyncio.Semaphore] = WeakValueDictionary()
        self._wait_seconds = wait_seconds

    @contextlib.asynccontextmanager
    async def place(self, *whose: str) -> AsyncIterator[None]:
        """A place for an upload that counts under each of the names, the one that fewest share first.

        A name is another one at another position. Raises ProblemError (unavailable) when none gets free in time.
        """
        # In this order, so that who waits for a place of their own keeps none from those they share a name with.
        limits = [*(self._of(key) for key in enumerate(whose)), self._all]
        async with contextlib.AsyncExitStack() as held:
            try:
                async with asyncio.timeout(self._wait_seconds):
                    for limit in limits:
                        await held.enter_async_context(limit)
            except TimeoutError:
                raise unavailable("Too many uploads at once.") from None
            yield

    def _of(self, key: tuple[int, str]) -> asyncio.Semaphore:
        own = self._own.get(key)
        if own is None:
            own = self._own[key] = asyncio.Semaphore(self._of_one)
        return own
