"""Whether the servers that settings point to are there, asked before anything is started."""

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
    """Where the servers are, by the setting that says so; without those whose addresses only their client can find."""
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


async def nobody_answers(addresses: Mapping[str, Sequence[Address]]) -> str | None:
    """One line on the first setting at none of whose addresses a connection is accepted; None when there is none."""
    for name, some in addresses.items():
        if not any(await asyncio.gather(*(_answers(address) for address in some))):
            return f"wrong setting: {name}: nothing answers at {', '.join(f'{host}:{port}' for host, port in some)}"
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
    """`host`, `host:port` and `[::1]:port`, comma-separated. What is not written like that was refused before."""
    split = [urlsplit(f"//{one.strip()}") for one in listed.split(",")]
    return [(parts.hostname or "localhost", parts.port or default_port) for parts in split]
