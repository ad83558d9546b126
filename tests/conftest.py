"""Fixtures for all tests: real servers, started once per session."""

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
    """Returns the first true value of `predicate`, called every 20 ms; fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = await predicate()
        if value:
            return value
        assert time.monotonic() < deadline, f"{predicate} did not come true within {timeout} s; last: {value!r}"
        await asyncio.sleep(0.02)


@pytest.fixture(scope="session")
async def kafka_servers() -> AsyncIterator[str]:
    """Bootstrap address of an embedded broker (Tansu), which does not support idempotent producers."""
    async with await servers.start_tansu() as broker:
        yield broker.url


@pytest.fixture(scope="session")
async def redis_url() -> AsyncIterator[str]:
    """URL of a Valkey without persistence. It is shared: use your own keys, never FLUSHALL."""
    async with await servers.start_valkey() as valkey:
        yield valkey.url


@pytest.fixture(scope="session")
async def cluster_libs() -> Path:
    """Folder with the jars of the cluster; fails with the reason when they are not available."""
    return await ensure_cluster_libs(REPOSITORY / ".cluster")


@pytest.fixture(scope="session")
async def apache_kafka(cluster_libs: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """Bootstrap address of an Apache Kafka node with an empty log and without automatic topic creation."""
    async with await servers.start_kafka(tmp_path_factory.mktemp("kafka"), cluster_libs) as kafka:
        yield kafka.url


@pytest.fixture(scope="session")
async def mongodb_url(cluster_libs: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """URL of an empty MongoDB-wire server."""
    async with await servers.start_mongo(tmp_path_factory.mktemp("mongo") / "data.mv", cluster_libs) as mongo:
        yield mongo.url
