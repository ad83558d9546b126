import asyncio

import pytest

from shared.service.recorded_stage import OneAtATime


async def test_the_same_key_waits_and_others_do_not() -> None:
    turns, order, go_on = OneAtATime(), [], asyncio.Event()

    async def work(name: str, key: str) -> None:
        async with turns.on(key):
            order.append(f"{name} begins")
            if name == "first":
                await go_on.wait()
            order.append(f"{name} ends")

    first = asyncio.create_task(work("first", "a"))
    await asyncio.sleep(0)
    second, other = asyncio.create_task(work("second", "a")), asyncio.create_task(work("other", "b"))
    await other
    go_on.set()
    await asyncio.gather(first, second)
    assert order == ["first begins", "other begins", "other ends", "first ends", "second begins", "second ends"]
    assert len(turns) == 0


async def test_one_who_fails_or_leaves_lets_the_next_one_in() -> None:
    turns = OneAtATime()
    with pytest.raises(ValueError, match="no"):
        async with turns.on("a"):
            raise ValueError("no")
    async with turns.on("a"):
        waiting = asyncio.create_task(turns.on("a").__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    assert len(turns) == 0
