"""StallWatch: when a consumer counts as stalled."""

import time

import pytest

from shared.messaging.cluster_watch import ClusterWatch
from shared.messaging.consume import stall_watch
from shared.messaging.consume.stall_watch import StallWatch
from shared.messaging.settings import KafkaSettings


class Member:
    def __init__(self) -> None:
        self.joined = True
        self.waiting = False

    async def records_waiting(self, within_seconds: float) -> bool:
        return self.waiting


class Clock:
    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stall_watch, "time", clock)
    return clock


def watched(member: Member, clock: Clock) -> tuple[StallWatch, ClusterWatch]:
    cluster = ClusterWatch(KafkaSettings(_env_file=None))
    cluster.last_answer = clock.now
    return StallWatch(member, cluster, limit_seconds=30), cluster


async def after(seconds: float, clock: Clock, watch: StallWatch, cluster: ClusterWatch) -> str | None:
    """The result of one look per second while the broker responds."""
    for _ in range(int(seconds)):
        clock.now += 1
        cluster.last_answer = clock.now
        reason = await watch.check()
        if reason is not None:
            return reason
    return None


async def test_waiting_records_without_progress_are_a_stall(clock: Clock) -> None:
    member = Member()
    watch, cluster = watched(member, clock)
    member.waiting = True
    assert await after(29, clock, watch, cluster) is None
    assert "records wait" in str(await after(5, clock, watch, cluster))


async def test_progress_or_the_end_of_the_log_is_no_stall(clock: Clock) -> None:
    member = Member()
    watch, cluster = watched(member, clock)
    assert await after(200, clock, watch, cluster) is None
    member.waiting = True
    for _ in range(20):
        watch.moved()
        assert await after(20, clock, watch, cluster) is None


async def test_a_member_that_cannot_join_ends_the_process(clock: Clock) -> None:
    member = Member()
    watch, cluster = watched(member, clock)
    member.joined = False
    assert await after(59, clock, watch, cluster) is None
    assert "not in its consumer group" in str(await after(5, clock, watch, cluster))


async def test_an_unreachable_broker_is_no_stall(clock: Clock) -> None:
    member = Member()
    watch, cluster = watched(member, clock)
    member.joined, member.waiting = False, True
    for _ in range(300):
        clock.now += 1
        assert await watch.check() is None
    assert await after(29, clock, watch, cluster) is None
