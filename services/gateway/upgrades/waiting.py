"""Requests that wait for the end of their upgrade, woken by a reply, by a look-up at the upgrader, or by shutdown."""

import asyncio
import time
from collections.abc import Callable

from services.gateway.upgrades.record_marks import RecordMarks
from services.gateway.upgrades.stage_clients import UpgradeResults
from shared.contracts.upgrade_results import UpgradeResult

_LOOK_UP_AFTER_SECONDS = 1.0
_MAX_WAITING = 10_000


class Waiter:
    """One request that waits for one upgrade."""

    def __init__(self, upgrade_id: str) -> None:
        self.upgrade_id = upgrade_id
        self.since = time.monotonic()
        self.answer: asyncio.Future[UpgradeResult | None] = asyncio.get_running_loop().create_future()

    def wake(self, result: UpgradeResult | None) -> None:
        if not self.answer.done():
            self.answer.set_result(result)

    def wake_if(self, result: UpgradeResult | None) -> None:
        """Wakes it, unless `result` is None."""
        if result is not None:
            self.wake(result)

    def result(self) -> UpgradeResult | None:
        """The result that this waiter was woken with, if any."""
        return self.answer.result() if self.answer.done() else None


class Waiters:
    """All waiting requests of this replica. `on_result` receives replies; `ask` looks up results with a lost reply."""

    def __init__(self, results: UpgradeResults, marks: RecordMarks, draining: Callable[[], bool]) -> None:
        self._results = results
        self._marks = marks
        self._draining = draining
        self._draining_since: float | None = None
        self._waiting: dict[str, set[Waiter]] = {}

    def join(self, upgrade_id: str) -> Waiter:
        """A new waiter for `wait` or `leave`. Join before the upgrade is published, so that no reply is missed."""
        waiter = Waiter(upgrade_id)
        self._waiting.setdefault(upgrade_id, set()).add(waiter)
        return waiter

    async def wait(self, waiter: Waiter, seconds: float) -> UpgradeResult | None:
        """The upgrade's result; None after `seconds`, when too many requests wait, or when the process drains."""
        try:
            if seconds <= 0 or len(self._waiting) > _MAX_WAITING:
                return waiter.result()
            return await asyncio.wait_for(waiter.answer, seconds)
        except TimeoutError:
            return None
        finally:
            self.leave(waiter)

    def leave(self, waiter: Waiter) -> None:
        others = self._waiting.get(waiter.upgrade_id, set())
        others.discard(waiter)
        if not others:
            self._waiting.pop(waiter.upgrade_id, None)

    async def on_result(self, result: UpgradeResult) -> None:
        """Records the end of an upgrade and wakes its waiters."""
        self._marks.ended(result)
        for waiter in self._waiting.get(result.upgrade_id, set()):
            waiter.wake(result)

    async def ask(self) -> None:
        """Looks up the upgrades of all requests that have waited for over a second. Raises ResultsUnavailable."""
        late = time.monotonic() - _LOOK_UP_AFTER_SECONDS
        ids = [upgrade_id for upgrade_id, all_ in self._waiting.items() if any(w.since < late for w in all_)]
        if ids:
            for result in await self._results.among(ids):
                await self.on_result(result)

    async def let_go(self, after_seconds: float) -> None:
        """Wakes all waiters without a result, `after_seconds` after the process began to drain. Called periodically."""
        if not self._draining():
            return
        self._draining_since = self._draining_since or time.monotonic()
        if time.monotonic() - self._draining_since >= after_seconds:
            for waiter in [waiter for all_ in self._waiting.values() for waiter in all_]:
                waiter.wake(None)
