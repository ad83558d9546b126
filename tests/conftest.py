"""Fixtures that every suite shares: real servers, started once a session and shared by all its tests."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from deploy.local import servers
from deploy.local.server_commands import ensure_cluster_libs

REPOSITORY = Path(__file__).parent.parent
T = TypeVar("T")


async def eventually(predicate: Callable[[], Awaitable[T]], timeout: float = 10.0) -> T:
    """What `predicate` returns, once that is true; asks again every 20 ms and fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = await predicate()
        if value:
            return value
        assert time.monotonic() < deadline, f"{predicate} did not come true within {timeout} s; last: {value!r}"
        await asyncio.sleep(0.02)


@pytest.fixture(scope="session")
async def kafka_servers() -> AsyncIterator[str]:
    """Bootstrap address of an embedded broker (Tansu). Idempotent producers are not for it."""
    async with await servers.start_tansu() as broker:
        yield broker.url


@pytest.fixture(scope="session")
async def redis_url() -> AsyncIterator[str]:
    """URL of a Valkey without persistence. Shared: use keys of your own, never FLUSHALL."""
    async with await servers.start_valkey() as valkey:
        yield valkey.url


@pytest.fixture(scope="session")
async def cluster_libs() -> Path:
    """Folder of the jars of the cluster; fails, and says why, where they cannot be had."""
    return await ensure_cluster_libs(REPOSITORY / ".cluster")


@pytest.fixture(scope="session")
async def apache_kafka(cluster_libs: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """Bootstrap address of an Apache Kafka node with an empty log. Topics are not created by accident there."""
    async with await servers.start_kafka(tmp_path_factory.mktemp("kafka"), cluster_libs) as kafka:
        yield kafka.url


@pytest.fixture(scope="session")
async def mongodb_url(cluster_libs: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """URL of an empty MongoDB-wire server."""
    async with await servers.start_mongo(tmp_path_factory.mktemp("mongo") / "data.mv", cluster_libs) as mongo:
        yield mongo.url
