import asyncio

import pytest

from shared.service.keyed_lock import KeyedLock


async def test_tasks_wait_for_the_same_key_and_not_for_others() -> None:
    lock, order, go_on = KeyedLock(), [], asyncio.Event()

    async def work(name: str, key: str) -> None:
        async with lock.hold(key):
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
    assert len(lock) == 0


async def test_a_failed_holder_and_a_cancelled_waiter_release_the_key() -> None:
    lock = KeyedLock()
    with pytest.raises(ValueError, match="no"):
        async with lock.hold("a"):
            raise ValueError("no")
    async with lock.hold("a"):
        waiting = asyncio.create_task(lock.hold("a").__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    assert len(lock) == 0
