"""A child process that writes to a SQLite store: `python -m tests.adapters.sqlite_child MODE FILE NAME`.

`endless` inserts until it is killed, and prints each id once it is acknowledged. `share` writes concurrently with other
children, and prints how many contested keys it won. `full` fills a file whose size is limited, then lifts the limit,
and prints its observations.
"""

import asyncio
import itertools
import os
import resource
import sys
from pathlib import Path

from shared.storage.documents import Collection, DuplicateKey, StorageUnavailable
from shared.storage.sqlite import SqliteDatabase
from tests.adapters.document_store_behaviour import SPEC

WRITERS = 32
SHARED_KEYS = 40
SHARED_UPDATES = 100
ROOM_BYTES = 400_000


async def endless(things: Collection, name: str) -> None:
    numbers = itertools.count()

    async def write() -> None:
        while True:
            id = f"{name}-{next(numbers)}"
            await things.insert({"_id": id, "tenantId": "t1", "text": "x" * 500})
            await things.update_one({"_id": "total"}, {"$inc": {"n": 1}}, upsert=True)
            os.write(1, f"{id}\n".encode())

    await asyncio.gather(*(write() for _ in range(WRITERS)))


async def share(things: Collection, name: str) -> None:
    async def claim(n: int) -> bool:
        try:
            await things.insert({"_id": f"{name}-{n}", "tenantId": "t1", "key": f"key-{n}"})
        except DuplicateKey:
            return False
        return True

    async def count() -> None:
        await things.update_one({"_id": "total"}, {"$inc": {"n": 1}}, upsert=True)

    claims = [claim(n) for n in range(SHARED_KEYS)]
    counts = [count() for _ in range(SHARED_UPDATES)]
    answers = await asyncio.gather(*claims, *counts)
    print(answers.count(True))


async def full(things: Collection, name: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM_BYTES, resource.RLIM_INFINITY))
    written = 0
    try:
        for n in range(100):
            await things.insert({"_id": f"{name}-{n}", "text": "x" * 20_000})
            written += 1
    except StorageUnavailable:
        print("unavailable")
    print(await things.count({}) == written)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await things.insert({"_id": "there is room again"})
    print(await things.count({}) == written + 1)


async def main(mode: str, file: str, name: str) -> None:
    database = SqliteDatabase(Path(file))
    things = database.collection(SPEC)
    await database.start()
    await {"endless": endless, "share": share, "full": full}[mode](things, name)
    await database.stop(10.0)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
