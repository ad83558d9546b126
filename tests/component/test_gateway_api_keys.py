"""The limit of API keys in a workspace holds when two replicas create keys concurrently."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from services.gateway.identity.api_keys import API_KEYS, DEMO_TENANT_ID, MAX_KEYS, ApiKeys, DemoKey, TooManyKeys
from shared.contracts.contract import new_id
from shared.storage.documents import Collection, Database
from shared.storage.sqlite import SqliteDatabase

OWNER = DemoKey(None).caller


@pytest.fixture
def open_gateway_database(tmp_path: Path) -> Callable[[], Database]:
    return lambda: SqliteDatabase(tmp_path / "gateway.sqlite3")


@pytest.fixture
async def collections(open_gateway_database: Callable[[], Database]) -> AsyncIterator[Sequence[Collection]]:
    """The keys as two replicas see them."""
    databases = [open_gateway_database() for _ in range(2)]
    both = [database.collection(API_KEYS) for database in databases]
    for database in databases:
        await database.start()
    yield both
    for database in databases:
        await database.stop(5)


async def made(keys: ApiKeys, key_id: str | None = None) -> str | None:
    """The new key, None when there are too many."""
    try:
        _, plain = await keys.create(OWNER, key_id=key_id or new_id(), name="n", role=OWNER.role, expires_at=None)
    except TooManyKeys:
        return None
    return plain


async def test_racing_replicas_keep_the_limit(collections: Sequence[Collection]) -> None:
    first, second = (ApiKeys(keys) for keys in collections)
    for keys in (first, second) * ((MAX_KEYS - 8) // 2):
        assert await made(keys)
    answers = await asyncio.gather(*(made((first, second)[n % 2]) for n in range(40)))
    assert len([plain for plain in answers if plain]) == 8
    assert await collections[0].count({"tenantId": DEMO_TENANT_ID}) == MAX_KEYS
    for key in await first.page(DEMO_TENANT_ID, limit=3, before=None):
        assert await first.revoke(OWNER, key)
    answers = await asyncio.gather(*(made((first, second)[n % 2]) for n in range(20)))
    assert len([plain for plain in answers if plain]) == 3
    assert await collections[0].count({"tenantId": DEMO_TENANT_ID}) == MAX_KEYS


async def test_no_key_is_refused_below_the_limit(collections: Sequence[Collection]) -> None:
    first, second = (ApiKeys(keys) for keys in collections)
    answers = await asyncio.gather(*(made((first, second)[n % 2]) for n in range(MAX_KEYS)))
    assert all(answers)
    assert await made(first) is None


async def test_the_last_key_can_be_created_again_with_its_id(collections: Sequence[Collection]) -> None:
    first, second = (ApiKeys(keys) for keys in collections)
    last = new_id()
    for _ in range(MAX_KEYS - 1):
        await made(first)
    lost, plain = await made(first, last), await made(second, last)
    assert lost
    assert plain
    assert await first.find(lost) is None
    found = await first.find(plain)
    assert found is not None
    assert found.id == last


async def test_stored_keys_without_a_place_count(collections: Sequence[Collection]) -> None:
    first, second = (ApiKeys(keys) for keys in collections)
    for _ in range(MAX_KEYS - 10):
        await made(first)
    await collections[0].update_many({"tenantId": DEMO_TENANT_ID}, {"$unset": {"place": ""}})
    answers = await asyncio.gather(*(made((first, second)[n % 2]) for n in range(30)))
    assert len([plain for plain in answers if plain]) == 10
