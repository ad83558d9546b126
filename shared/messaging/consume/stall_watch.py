"""Detects a consumer that has stopped although it could read, so that the process can be restarted.

aiokafka has known faults where a consumer hangs after a rejoin or a broker restart. No progress alone is not a fault:
the log may have ended, the member may own no partition, or the broker may be down.
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
    """The part of Telemetry that consumers use: ends a process that cannot go on."""

    def fatal(self, message: str) -> None: ...


class GroupMember(Protocol):
    """A group member under watch."""

    @property
    def joined(self) -> bool:
        """Whether it is a member of the group's current generation."""

    async def records_waiting(self, within_seconds: float) -> bool:
        """Whether there are records after the last one read. Raises when the broker does not respond in time."""


class StallWatch:
    """Judges one reader. Call `check` every few seconds, and `moved` at each fetch, finish and deliberate pause."""

    def __init__(self, reader: GroupMember, cluster: ClusterWatch, limit_seconds: float) -> None:
        self._reader = reader
        self._cluster = cluster
        self._limit = limit_seconds
        self._last_move = time.monotonic()
        self._last_member = time.monotonic()

    def moved(self) -> None:
        self._last_move = time.monotonic()

    async def check(self) -> str | None:
        """Returns the reason to end the process, or None."""
        now = time.monotonic()
        if not self._broker_answers(now):
            # The limits start when the broker is back.
            self._last_member = self._last_move = now
            return None
        if self._reader.joined:
            self._last_member = now
        elif now - self._last_member > 2 * self._limit:
            return f"not in its consumer group for {2 * self._limit:.0f} s although the broker answers"
        if now - self._last_move > self._limit and self._reader.joined and await self._records_wait():
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
