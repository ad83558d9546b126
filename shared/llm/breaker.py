"""The circuit breaker around model requests: pybreaker, made fit for many asyncio tasks at a time."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pybreaker

from shared.observability.metrics import BREAKER_STATE

_STATE_NUMBERS = {pybreaker.STATE_CLOSED: 0, pybreaker.STATE_HALF_OPEN: 1, pybreaker.STATE_OPEN: 2}


class Unavailability(Exception):
    """What counts against the model: raise it, or a subclass, inside `ModelBreaker.calling()`."""


class BreakerOpen(Exception):
    """The breaker lets nothing by at the moment."""


class _Storage(pybreaker.CircuitMemoryStorage):
    """Breaker state in memory that turns a deaf ear where a call says nothing about the model as it is now.

    pybreaker takes an excluded exception for a success, so that a cancelled probe would close the breaker; and calls
    that began before the breaker opened, and fail after it, would keep it open for longer.
    """

    def __init__(self) -> None:
        super().__init__(pybreaker.STATE_CLOSED)
        self.deaf = False

    def increment_counter(self) -> None:
        if not self.deaf:
            super().increment_counter()

    def reset_counter(self) -> None:
        if not self.deaf:
            super().reset_counter()

    def increment_success_counter(self) -> None:
        if not self.deaf:
            super().increment_success_counter()

    @property
    def counter(self) -> int:
        return 0 if self.deaf else super().counter


class ModelBreaker(pybreaker.CircuitBreakerListener):
    """Opens after `failures` unavailabilities in a row; after `open_seconds` one probe decides whether it closes."""

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
        """Has `callback` called each time the breaker opens."""
        self._on_open.append(callback)

    def refuses(self) -> bool:
        """Whether a call that starts now would be turned away."""
        if self._probing:
            return True
        opened_at = self._storage.opened_at
        if self.state != pybreaker.STATE_OPEN or opened_at is None:
            return False
        return datetime.now(UTC) < opened_at + timedelta(seconds=self._breaker.reset_timeout)

    def wants_probe(self) -> bool:
        """Whether the next call would decide, alone, if the breaker closes."""
        return self.state != pybreaker.STATE_CLOSED and not self.refuses()

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Around one request; raises BreakerOpen instead of entering while the breaker refuses."""
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
                    self._storage.deaf = True
                    raise
                finally:
                    if not probe and generation != self._generation:
                        self._storage.deaf = True
        finally:
            self._storage.deaf = False
            if probe:
                self._probing = False

    def state_change(
        self,
        cb: pybreaker.CircuitBreaker,
        old_state: pybreaker.CircuitBreakerState | None,
        new_state: pybreaker.CircuitBreakerState,
    ) -> None:
        """Told by pybreaker."""
        BREAKER_STATE.labels(breaker=self.name).set(_STATE_NUMBERS[new_state.name])
        if new_state.name == pybreaker.STATE_OPEN:
            self._generation += 1
            for callback in self._on_open:
                callback()
