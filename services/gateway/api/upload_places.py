"""How many uploads there may be at a time: each is held in memory whole."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary

from services.gateway.api.upgrade_reads import unavailable

_PLACES = 8
# A person may own three workspaces: with all of them they still leave places to others.
_PLACES_OF_A_TENANT = 2
_TURN_SECONDS = 10.0


class UploadPlaces:
    """`places` in all, and of them at most `of_a_tenant` for each tenant."""

    def __init__(
        self,
        *,
        places: int = _PLACES,
        of_a_tenant: int = _PLACES_OF_A_TENANT,
        wait_seconds: float = _TURN_SECONDS,
    ) -> None:
        self._all = asyncio.Semaphore(places)
        self._of_a_tenant = of_a_tenant
        # Of those tenants that have a place or wait for one.
        self._tenants: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._wait_seconds = wait_seconds

    @contextlib.asynccontextmanager
    async def place(self, tenant_id: str) -> AsyncIterator[None]:
        """A place for an upload of the tenant. Raises ProblemError (unavailable) when none gets free in time."""
        own = self._tenants.get(tenant_id)
        if own is None:
            own = self._tenants[tenant_id] = asyncio.Semaphore(self._of_a_tenant)
        async with contextlib.AsyncExitStack() as held:
            try:
                async with asyncio.timeout(self._wait_seconds):
                    await held.enter_async_context(own)
                    await held.enter_async_context(self._all)
            except TimeoutError:
                raise unavailable("Too many uploads at once.") from None
            yield
