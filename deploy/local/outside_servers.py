"""Checks that the external servers named in settings accept connections, before anything is started."""

import asyncio
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from deploy.local.settings import LocalSettings

_CONNECT_SECONDS = 3.0
_REDIS_PORT = 6379
_MONGODB_PORT = 27017
_KAFKA_PORT = 9092

Address = tuple[str, int]


def outside_addresses(settings: LocalSettings) -> Mapping[str, Sequence[Address]]:
    """Returns host and port of each external server by the name of its setting.

    Leaves out URLs that only the client library can resolve, such as `mongodb+srv:` and `unix:`.
    """
    found: dict[str, Sequence[Address]] = {}
    if settings.kafka_bootstrap_servers:
        found["KAFKA_BOOTSTRAP_SERVERS"] = _addresses(settings.kafka_bootstrap_servers, _KAFKA_PORT)
    for name, url, scheme, port in (
        ("REDIS_URL", settings.redis_url, "redis", _REDIS_PORT),
        ("MONGODB_URL", settings.mongodb_url, "mongodb", _MONGODB_PORT),
    ):
        if url is not None:
            parts = urlsplit(url.get_secret_value())
            if parts.scheme in (scheme, f"{scheme}s"):
                found[name] = _addresses(parts.netloc.rpartition("@")[2], port)
    return found


async def unreachable_server(addresses: Mapping[str, Sequence[Address]]) -> str | None:
    """Returns one line about the first setting none of whose addresses accepts connections, or None."""
    for name, hosts in addresses.items():
        if not any(await asyncio.gather(*(_answers(address) for address in hosts))):
            return f"wrong setting: {name}: nothing answers at {', '.join(f'{host}:{port}' for host, port in hosts)}"
    return None


async def _answers(address: Address) -> bool:
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(*address)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def _addresses(listed: str, default_port: int) -> list[Address]:
    """Parses comma-separated `host`, `host:port` and `[::1]:port`. The settings check has refused any other form."""
    split = [urlsplit(f"//{one.strip()}") for one in listed.split(",")]
    return [(parts.hostname or "localhost", parts.port or default_port) for parts in split]
