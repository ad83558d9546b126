"""Upgrades that wait for quota which open holds occupy."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from services.gateway.quota import room_queue
from services.gateway.quota.room_queue import RoomQueue


class Room:
    """Places that free while others wait for them."""

    def __init__(self) -> None:
        self.free = 0
        self.asked: list[str] = []
        self.admitted: list[str] = []

    def ask(self, name: str) -> Callable[[], Awaitable[bool]]:
        async def ask_again() -> bool:
            self.asked.append(name)
            if self.free == 0:
                return False
            self.free -= 1
            self.admitted.append(name)
            return True

        return ask_again


async def test_who_waits_is_admitted_in_order_as_room_comes() -> None:
    room, queue = Room(), RoomQueue()
    waiting = [asyncio.create_task(queue.wait("t", "2026-11", 5, room.ask(name))) for name in "abc"]
    await asyncio.sleep(0.1)
    assert set(room.asked) == {"a"}
    room.free = 2
    await asyncio.gather(*waiting[:2])
    assert room.admitted == ["a", "b"]
    room.free = 1
    await waiting[2]
    assert room.admitted == ["a", "b", "c"]


async def test_nobody_waits_longer_than_allowed() -> None:
    room, queue = Room(), RoomQueue()
    began = time.monotonic()
    await asyncio.gather(*(queue.wait("t", "2026-11", 0.2, room.ask(name)) for name in "abc"))
    assert 0.15 < time.monotonic() - began < 2
    assert room.admitted == []


async def test_tenants_wait_apart() -> None:
    room, other, queue = Room(), Room(), RoomQueue()
    waiting = asyncio.create_task(queue.wait("t", "2026-11", 5, room.ask("a")))
    await asyncio.sleep(0)
    other.free = 1
    await queue.wait("u", "2026-11", 5, other.ask("b"))
    assert not waiting.done()
    room.free = 1
    await waiting


async def test_a_full_line_turns_away_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room_queue, "_MOST_WAITING", 1)
    room, queue = Room(), RoomQueue()
    waiting = asyncio.create_task(queue.wait("t", "2026-11", 5, room.ask("a")))
    await asyncio.sleep(0)
    await queue.wait("t", "2026-11", 5, room.ask("b"))
    assert "b" not in room.asked
    room.free = 1
    await waiting


async def test_who_goes_away_leaves_the_line_to_the_next() -> None:
    room, queue = Room(), RoomQueue()
    first, second = (asyncio.create_task(queue.wait("t", "2026-11", 5, room.ask(name))) for name in "ab")
    await asyncio.sleep(0.05)
    first.cancel()
    room.free = 1
    await second
    assert room.admitted == ["b"]
