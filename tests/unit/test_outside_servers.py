"""External servers named in settings: their addresses, and the check that they answer."""

import socket
from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from deploy.local.outside_servers import outside_addresses, unreachable_server
from deploy.local.settings import LocalSettings


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(5)
        yield server.getsockname()[1]


@pytest.fixture
def closed() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))  # bound but not listening: no other process gets the port
        yield server.getsockname()[1]


def test_addresses_are_found_in_every_kind_of_setting() -> None:
    settings = LocalSettings(
        _env_file=None,
        kafka_bootstrap_servers="one:9093, two",
        redis_url=SecretStr("rediss://user:p%40ss@cache.example.org/0"),
        mongodb_url=SecretStr("mongodb://user:p@a:1,[::1]:2/db?replicaSet=r"),
    )
    assert outside_addresses(settings) == {
        "KAFKA_BOOTSTRAP_SERVERS": [("one", 9093), ("two", 9092)],
        "REDIS_URL": [("cache.example.org", 6379)],
        "MONGODB_URL": [("a", 1), ("::1", 2)],
    }


def test_urls_that_only_the_client_can_resolve_are_not_checked() -> None:
    settings = LocalSettings(
        _env_file=None,
        redis_url=SecretStr("unix:///run/redis.sock"),
        mongodb_url=SecretStr("mongodb+srv://user:p@cluster.example.org/db"),
    )
    assert outside_addresses(settings) == {}
    assert outside_addresses(LocalSettings(_env_file=None)) == {}


async def test_one_reachable_address_per_setting_is_enough(listening: int, closed: int) -> None:
    there, away = ("127.0.0.1", listening), ("127.0.0.1", closed)
    assert await unreachable_server({}) is None
    assert await unreachable_server({"REDIS_URL": [there], "KAFKA_BOOTSTRAP_SERVERS": [away, there]}) is None
    assert await unreachable_server({"REDIS_URL": [there], "MONGODB_URL": [away]}) == (
        f"wrong setting: MONGODB_URL: nothing answers at 127.0.0.1:{closed}"
    )
