"""The breaker for many tasks at a time, and the slots for requests in flight."""

import asyncio
from contextlib import suppress

import pytest

from shared.llm.breaker import BreakerOpen, ModelBreaker, Unavailability
from shared.llm.sending import Slots
from shared.observability.metrics import BREAKER_STATE
from tests.conftest import eventually


def fail(breaker: ModelBreaker, error: Exception | None = None) -> None:
    with suppress(Unavailability, ValueError), breaker.calling():
        raise error or Unavailability


def succeed(breaker: ModelBreaker) -> None:
    with breaker.calling():
        pass


async def lets_a_probe_by(breaker: ModelBreaker) -> None:
    async def ready() -> bool:
        return not breaker.refuses()

    await eventually(ready)


def test_it_opens_after_failures_in_a_row_only() -> None:
    breaker = ModelBreaker("row", failures=3)

    for _ in range(5):
        fail(breaker)
        fail(breaker)
        succeed(breaker)
    assert breaker.state == "closed"
    for _ in range(3):
        fail(breaker)

    assert breaker.state == "open"
    assert BREAKER_STATE.labels(breaker="row")._value.get() == 2
    with pytest.raises(BreakerOpen), breaker.calling():
        pass


def test_other_errors_are_no_sign_of_an_outage() -> None:
    breaker = ModelBreaker("other", failures=1)

    fail(breaker, ValueError())

    assert breaker.state == "closed"


def test_the_error_itself_comes_through_also_when_it_trips() -> None:
    breaker = ModelBreaker("error", failures=1)

    with pytest.raises(Unavailability, match="mine"), breaker.calling():
        raise Unavailability("mine")


async def test_a_failed_probe_opens_it_again_and_a_good_one_closes_it() -> None:
    breaker = ModelBreaker("probe", failures=1, open_seconds=0.05)
    fail(breaker)
    await lets_a_probe_by(breaker)
    fail(breaker)
    assert breaker.refuses()

    await lets_a_probe_by(breaker)
    with breaker.calling():
        assert breaker.state == "half-open"
        assert breaker.refuses()
        with pytest.raises(BreakerOpen), breaker.calling():
            pass

    assert breaker.state == "closed"
    assert not breaker.refuses()


async def test_a_cancelled_call_neither_counts_nor_forgives() -> None:
    breaker = ModelBreaker("cancelled", failures=2)
    fail(breaker)

    with suppress(asyncio.CancelledError), breaker.calling():
        raise asyncio.CancelledError
    assert breaker.state == "closed"
    fail(breaker)

    assert breaker.state == "open"


async def test_calls_that_began_before_it_opened_do_not_keep_it_open() -> None:
    breaker = ModelBreaker("late", failures=1, open_seconds=0.1)
    released = asyncio.Event()

    async def late() -> None:
        with suppress(Unavailability), breaker.calling():
            await released.wait()
            raise Unavailability

    calls = [asyncio.create_task(late()) for _ in range(3)]
    await asyncio.sleep(0)
    fail(breaker)
    await lets_a_probe_by(breaker)
    released.set()
    await asyncio.gather(*calls)

    assert not breaker.refuses()
    succeed(breaker)
    assert breaker.state == "closed"


async def test_slots_are_handed_out_in_order_and_bounded() -> None:
    slots = Slots(2)
    running = 0
    most = 0
    order: list[int] = []

    async def work(number: int) -> None:
        nonlocal running, most
        async with slots.one(5):
            running += 1
            most = max(most, running)
            order.append(number)
            await asyncio.sleep(0)
            running -= 1

    await asyncio.gather(*(work(number) for number in range(20)))

    assert most == 2
    assert order == list(range(20))


async def test_a_slot_is_not_lost_when_its_waiter_gives_up() -> None:
    slots = Slots(1)
    async with slots.one(1):
        with pytest.raises(TimeoutError):
            async with slots.one(0.01):
                pass
        waiter = asyncio.create_task(_take(slots))
        await asyncio.sleep(0)
        waiter.cancel()
    await asyncio.wait([waiter])

    await asyncio.wait_for(_take(slots), 1)


async def test_a_slot_given_to_a_waiter_that_is_cancelled_at_the_same_moment_comes_back() -> None:
    slots = Slots(1)
    holding = slots.one(1)
    await holding.__aenter__()
    waiter = asyncio.create_task(_take(slots))
    await asyncio.sleep(0)

    await holding.__aexit__(None, None, None)
    waiter.cancel()
    await asyncio.wait([waiter])

    await asyncio.wait_for(_take(slots), 1)


async def test_all_who_wait_can_be_turned_away() -> None:
    slots = Slots(1)
    async with slots.one(1):
        waiters = [asyncio.create_task(_take(slots)) for _ in range(3)]
        await asyncio.sleep(0)
        slots.reject_waiting()
        outcomes = await asyncio.gather(*waiters, return_exceptions=True)

    assert all(isinstance(outcome, BreakerOpen) for outcome in outcomes)
    await asyncio.wait_for(_take(slots), 1)


async def _take(slots: Slots) -> None:
    async with slots.one(5):
        pass
