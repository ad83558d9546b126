"""Notices that a consumer no longer moves although it could, which only a new process cures.

The client library has open faults where a consumer hangs after a rejoin or a broker's restart. Nothing moving is no
fault by itself: the log may have ended, the member may own no partition, the broker may be out.
"""

import time
from typing import Protocol

from aiokafka.errors import KafkaError

from shared.messaging.cluster_watch import ClusterWatch
from shared.observability.logs import get_logger

_ASK_WITHIN_SECONDS = 5.0
_BROKER_SILENT_SECONDS = 5.0

log = get_logger(__name__)


class EndsProcess(Protocol):
    """What a consumer needs of telemetry: the way to end a process that cannot go on."""

    def fatal(self, message: str) -> None: ...


class Reads(Protocol):
    """A member of a consumer group, as far as it is judged here."""

    @property
    def joined(self) -> bool:
        """Whether it belongs to the group's current generation."""

    async def records_waiting(self, within_seconds: float) -> bool:
        """Whether the log goes on after what was read. Raises when the broker does not say in time."""


class StallWatch:
    """Judges one reader. `look` is called every few seconds; `moved` at each finish, fetch or deliberate pause."""

    def __init__(self, reader: Reads, cluster: ClusterWatch, limit_seconds: float) -> None:
        self._reader = reader
        self._cluster = cluster
        self._limit = limit_seconds
        self.last_move = time.monotonic()
        self._healthy_membership = time.monotonic()

    def moved(self) -> None:
        self.last_move = time.monotonic()

    async def look(self) -> str | None:
        """Why the process should end, or None."""
        now = time.monotonic()
        if not self._broker_answers(now):
            # A consumer cannot be blamed; its time begins when the broker is back.
            self._healthy_membership = self.last_move = now
            return None
        if self._reader.joined:
            self._healthy_membership = now
        elif now - self._healthy_membership > 2 * self._limit:
            return f"not in its consumer group for {2 * self._limit:.0f} s although the broker answers"
        if now - self.last_move > self._limit and self._reader.joined and await self._records_wait():
            return f"records wait and none were read for {self._limit:.0f} s"
        return None

    def _broker_answers(self, now: float) -> bool:
        last = self._cluster.last_answer
        return last is not None and now - last < _BROKER_SILENT_SECONDS

    async def _records_wait(self) -> bool:
        try:
            if await self._reader.records_waiting(_ASK_WITHIN_SECONDS):
                return True
        except (KafkaError, OSError, TimeoutError, AssertionError) as error:
            log.warning("log_end_not_known", error=type(error).__name__)
        else:
            self.moved()
        return False
