"""The circuit breaker around requests to the model: pybreaker, adapted to many concurrent asyncio tasks."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pybreaker

from shared.observability.metrics import BREAKER_STATE

_STATE_NUMBERS = {pybreaker.STATE_CLOSED: 0, pybreaker.STATE_HALF_OPEN: 1, pybreaker.STATE_OPEN: 2}


class Unavailability(Exception):
    """Counts as a failure of the model when it, or a subclass, is raised inside `ModelBreaker.calling()`."""


class BreakerOpen(Exception):
    """The breaker refuses requests at the moment."""


class ModelBreaker(pybreaker.CircuitBreakerListener):
    """Opens after `failures` consecutive Unavailability errors. After `open_seconds`, one request probes the model.

    A successful probe closes the breaker, a failed one opens it again. Meanwhile all other requests are refused.
    `name` labels the breaker's metrics.
    """

    def __init__(self, name: str = "model", *, failures: int = 8, open_seconds: float = 15.0) -> None:
        self.name = name
        self._storage = _Storage()
        self._breaker = pybreaker.CircuitBreaker(
            fail_max=failures,
            reset_timeout=open_seconds,
            exclude=[lambda error: not isinstance(error, Unavailability)],
            listeners=[self],
            state_storage=self._storage,
            name=name,
            throw_new_error_on_trip=False,
        )
        self._generation = 0
        self._probing = False
        self._on_open: list[Callable[[], None]] = []
        BREAKER_STATE.labels(breaker=name).set(0)

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`."""
        return self._breaker.current_state

    def on_open(self, callback: Callable[[], None]) -> None:
        """Registers a callback for each time the breaker opens."""
        self._on_open.append(callback)

    def refuses(self) -> bool:
        """Whether a request that starts now would be refused."""
        if self._probing:
            return True
        opened_at = self._storage.opened_at
        if self.state != pybreaker.STATE_OPEN or opened_at is None:
            return False
        return datetime.now(UTC) < opened_at + timedelta(seconds=self._breaker.reset_timeout)

    def wants_probe(self) -> bool:
        """Whether the next request would be the probe that closes the breaker or opens it again."""
        return self.state != pybreaker.STATE_CLOSED and not self.refuses()

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Wraps one request and counts its outcome. Raises BreakerOpen instead of entering while it refuses."""
        if self.refuses():
            raise BreakerOpen
        probe = self.state != pybreaker.STATE_CLOSED
        generation = self._generation
        self._probing = probe
        try:
            with self._breaker.calling():
                try:
                    yield
                except asyncio.CancelledError:
                    self._storage.ignores_results = True
                    raise
                finally:
                    if not probe and generation != self._generation:
                        self._storage.ignores_results = True
        finally:
            self._storage.ignores_results = False
            if probe:
                self._probing = False

    def state_change(
        self,
        cb: pybreaker.CircuitBreaker,
        old_state: pybreaker.CircuitBreakerState | None,
        new_state: pybreaker.CircuitBreakerState,
    ) -> None:
        """Called by pybreaker."""
        BREAKER_STATE.labels(breaker=self.name).set(_STATE_NUMBERS[new_state.name])
        if new_state.name == pybreaker.STATE_OPEN:
            self._generation += 1
            for callback in self._on_open:
                callback()


class _Storage(pybreaker.CircuitMemoryStorage):
    """Breaker state in memory that can ignore results.

    pybreaker counts an excluded exception as a success, so a cancelled probe would close the breaker. And failures of
    requests that began before the breaker opened would extend the time it stays open.
    """

    def __init__(self) -> None:
        super().__init__(pybreaker.STATE_CLOSED)
        self.ignores_results = False

    def increment_counter(self) -> None:
        if not self.ignores_results:
            super().increment_counter()

    def reset_counter(self) -> None:
        if not self.ignores_results:
            super().reset_counter()

    def increment_success_counter(self) -> None:
        if not self.ignores_results:
            super().increment_success_counter()

    @property
    def counter(self) -> int:
        return 0 if self.ignores_results else super().counter
