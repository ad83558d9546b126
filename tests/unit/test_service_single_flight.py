"""Calls for one key are joined, and a change while they run keeps their results out of the cache."""

import asyncio

import pytest

from shared.service.single_flight import SingleFlight


class Calls:
    """A slow call that counts its starts and ends when the test says so."""

    def __init__(self) -> None:
        self.started = 0
        self.cancelled = 0
        self.may_end = asyncio.Event()
        self.failure: Exception | None = None

    async def __call__(self) -> int:
        self.started += 1
        number = self.started
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failure:
            raise self.failure
        return number


async def waiting(flight: SingleFlight[str, int], key: str, call: Calls) -> asyncio.Task[int]:
    """A caller that waits for its result."""
    task = asyncio.create_task(flight.run(key, call))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


async def test_callers_of_one_key_share_one_call() -> None:
    calls = Calls()
    flight = SingleFlight[str, int]()
    callers = [await waiting(flight, key, calls) for key in ("a", "a", "b", "a")]
    assert calls.started == 2
    assert flight.is_running("a")
    calls.may_end.set()
    assert await asyncio.gather(*callers) == [1, 1, 2, 1]
    assert not flight.is_running("a")
    assert await flight.run("a", calls) == 3


async def test_every_caller_gets_the_exception_and_the_next_one_calls_again() -> None:
    calls = Calls()
    results: list[tuple[str, int]] = []
    flight = SingleFlight[str, int](on_result=lambda key, value: results.append((key, value)))
    calls.failure = ValueError("out")
    callers = [await waiting(flight, "a", calls) for _ in range(2)]
    calls.may_end.set()
    for caller in callers:
        with pytest.raises(ValueError, match="out"):
            await caller
    assert results == []
    calls.failure = None
    assert await flight.run("a", calls) == 2
    assert results == [("a", 2)]


async def test_a_cancelled_caller_leaves_the_call_to_the_others() -> None:
    calls = Calls()
    flight = SingleFlight[str, int]()
    first, second = [await waiting(flight, "a", calls) for _ in range(2)]
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    calls.may_end.set()
    assert await second == 1


async def test_a_result_is_stored_before_its_callers_get_it() -> None:
    calls = Calls()
    cache: dict[str, int] = {}
    flight = SingleFlight[str, int](on_result=cache.__setitem__)

    async def caller() -> int:
        await flight.run("a", calls)
        return cache["a"]

    task = asyncio.create_task(caller())
    await asyncio.sleep(0)
    calls.may_end.set()
    assert await task == 1


async def test_calls_from_before_a_change_are_neither_joined_nor_stored() -> None:
    calls = Calls()
    cache: dict[str, int] = {}
    flight = SingleFlight[str, int](on_result=cache.__setitem__)
    before = await waiting(flight, "a", calls)
    flight.forget_all()
    assert not flight.is_running("a")
    calls.may_end.set()
    assert await before == 1
    assert cache == {}
    assert await flight.run("a", calls) == 2
    assert cache == {"a": 2}


async def test_a_call_from_before_a_change_does_not_end_the_one_after_it() -> None:
    old, new = Calls(), Calls()
    cache: dict[str, int] = {}
    flight = SingleFlight[str, int](on_result=cache.__setitem__)
    before = await waiting(flight, "a", old)
    flight.forget_all()
    after = await waiting(flight, "a", new)
    old.may_end.set()
    await before
    assert flight.is_running("a")
    assert cache == {}
    new.may_end.set()
    assert await after == 1
    assert cache == {"a": 1}


async def test_stop_cancels_what_runs() -> None:
    calls = Calls()
    flight = SingleFlight[str, int]()
    flight.start("a", calls)
    caller = await waiting(flight, "b", calls)
    await flight.stop()
    assert calls.cancelled == 2
    assert not flight.is_running("a")
    with pytest.raises(asyncio.CancelledError):
        await caller
