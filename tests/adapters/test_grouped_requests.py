"""Grouped requests: each has its own outcome, and none waits without need."""

import asyncio
from collections.abc import Sequence

import pytest

from shared.storage.documents import StorageUnavailable
from shared.storage.grouped_requests import GroupedRequests


class Server:
    """Records groups and responds when a test permits it. Rejects odd requests."""

    def __init__(self) -> None:
        self.trips: list[list[int]] = []
        self.answers = asyncio.Semaphore(0)
        self.arrived = asyncio.Semaphore(0)
        self.down = False
        self.requests = GroupedRequests(self._one, self._each)

    async def _one(self, request: int) -> str:
        [outcome] = await self._each([request])
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def _each(self, requests: Sequence[int]) -> list[str | BaseException]:
        self.trips.append(list(requests))
        self.arrived.release()
        await self.answers.acquire()
        if self.down:
            raise StorageUnavailable("down")
        return [ValueError(str(request)) if request % 2 else str(request) for request in requests]

    async def ask(self, *requests: int) -> list[asyncio.Task[str]]:
        asked = [asyncio.ensure_future(self.requests.request(request)) for request in requests]
        await asyncio.sleep(0)  # let each send its request
        return asked


async def test_a_request_is_sent_alone_and_at_once_when_none_is_in_flight() -> None:
    server = Server()
    for request in (2, 4):
        [asked] = await server.ask(request)
        server.answers.release()
        assert await asked == str(request)
    assert server.trips == [[2], [4]]


async def test_requests_during_a_round_trip_are_grouped_and_have_their_own_outcomes() -> None:
    server = Server()
    [first, *others] = await server.ask(0, 1, 2, 3, 4)
    assert server.trips == [[0]]
    server.answers.release()
    assert await first == "0"
    await asyncio.wait_for(server.arrived.acquire(), 5)
    [late] = await server.ask(6)
    for _ in range(2):
        server.answers.release()
    outcomes = await asyncio.gather(*others, late, return_exceptions=True)
    assert server.trips == [[0], [1, 2, 3, 4], [6]]
    assert [str(outcome) for outcome in outcomes] == ["1", "2", "3", "4", "6"]
    assert [isinstance(outcome, ValueError) for outcome in outcomes] == [True, False, True, False, False]


async def test_a_cancelled_request_is_not_sent_and_does_not_block_others() -> None:
    server = Server()
    [first, given_up, other] = await server.ask(0, 2, 4)
    first.cancel()
    given_up.cancel()
    server.answers.release()
    assert await other == "4"
    assert server.trips == [[0], [4]]
    [after] = await server.ask(6)
    server.answers.release()
    assert await after == "6"


async def test_a_failed_group_fails_together_and_later_requests_succeed() -> None:
    server = Server()
    asked = await server.ask(0, 2, 4)
    server.down = True
    for _ in range(2):
        server.answers.release()
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(outcome, StorageUnavailable) for outcome in outcomes)
    server.down = False
    [after] = await server.ask(6)
    server.answers.release()
    assert await after == "6"


async def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.storage.grouped_requests._MAX_WAITING", 2)
    server = Server()
    [first, *waiting, too_many] = await server.ask(0, 2, 4, 6)
    with pytest.raises(StorageUnavailable, match="too many"):
        await too_many
    for _ in range(2):
        server.answers.release()
    assert await asyncio.gather(first, *waiting) == ["0", "2", "4"]
