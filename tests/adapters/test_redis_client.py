"""The Redis client returns bytes and bounds every wait."""

import asyncio
import time

import pytest
from pydantic import SecretStr
from redis.exceptions import RedisError

from deploy.local import servers
from deploy.local.ports import free_port
from shared.storage.opening import open_redis
from shared.storage.settings import StorageSettings


def settings_for(url: str) -> StorageSettings:
    return StorageSettings(redis_url=SecretStr(url), _env_file=None)


async def test_answers_are_bytes(redis_url: str) -> None:
    redis = open_redis(settings_for(redis_url))
    await redis.set("redis-client-test", "ü")
    assert await redis.get("redis-client-test") == "ü".encode()
    await redis.aclose()


async def test_more_callers_than_connections_share_the_pool(redis_url: str) -> None:
    redis = open_redis(settings_for(redis_url), max_connections=4)
    answers = await asyncio.gather(*(redis.echo(f"{n}") for n in range(200)))
    assert answers == [f"{n}".encode() for n in range(200)]
    await redis.aclose()


async def test_an_unreachable_server_fails_soon() -> None:
    redis = open_redis(settings_for(f"redis://127.0.0.1:{free_port()}/0"))
    with pytest.raises(RedisError):
        await redis.ping()
    await redis.aclose()


async def test_an_unresponsive_server_fails_in_bounded_time() -> None:
    async def accept_and_say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the client gives up
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(accept_and_say_nothing, "127.0.0.1", 0)
    redis = open_redis(settings_for(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"))
    started = time.monotonic()
    with pytest.raises(RedisError):
        await redis.ping()
    assert time.monotonic() - started < 4
    await redis.aclose()
    server.close()
    await server.wait_closed()


async def test_connections_broken_by_a_restart_are_replaced() -> None:
    valkey = await servers.start_valkey()
    redis = open_redis(settings_for(valkey.url), max_connections=4)
    await asyncio.gather(*(redis.ping() for _ in range(20)))
    await valkey.stop()
    with pytest.raises(RedisError):
        await redis.ping()
    await valkey.start()
    answers = await asyncio.gather(*(redis.echo(f"{n}") for n in range(20)))
    assert len(answers) == 20
    await redis.aclose()
    await valkey.stop()
