"""Opens the database and the Redis client that the settings name. Every wait on Redis has a limit."""

from datetime import UTC, datetime

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.storage.documents import Database
from shared.storage.settings import StorageSettings
from shared.storage.sqlite import SqliteDatabase

SOCKET_TIMEOUT_SECONDS = 2.0
_POOL_WAIT_SECONDS = 2.0
_HEALTH_CHECK_SECONDS = 15


def open_redis(settings: StorageSettings, *, max_connections: int = 64) -> Redis:
    """A client on a pool of its own; answers are bytes. Connects at first use; close it with `aclose()`.

    A command that must block on the server for longer than 2 s (XREAD with BLOCK) has to ask for less than that.
    """
    pool = BlockingConnectionPool.from_url(
        settings.redis_url.get_secret_value(),
        max_connections=max_connections,
        timeout=_POOL_WAIT_SECONDS,
        socket_timeout=SOCKET_TIMEOUT_SECONDS,
        socket_connect_timeout=SOCKET_TIMEOUT_SECONDS,
        health_check_interval=_HEALTH_CHECK_SECONDS,
        # A connection that was lost is worth another try at once; a server that is silent is not worth waiting twice.
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), retries=2, supported_errors=(RedisConnectionError,)),
        decode_responses=False,
    )
    return Redis.from_pool(pool)


async def redis_now(redis: Redis) -> datetime:
    """The time by Redis's own clock, the same for all that use it. Raises RedisError."""
    seconds, microseconds = await redis.time()
    return datetime.fromtimestamp(seconds + microseconds / 1e6, UTC)


def open_database(settings: StorageSettings, service: str) -> Database:
    """MongoDB's database `prompt_upgrader_<service>`, or without a URL the file `<service>.sqlite3` in the data folder.

    Not started yet.
    """
    if settings.mongodb_url is not None:
        # The driver takes 18 MB of a process: only those that use it pay for it.
        from shared.storage.mongodb import MongoDatabase

        return MongoDatabase(settings.mongodb_url.get_secret_value(), f"prompt_upgrader_{service}")
    return SqliteDatabase(settings.data_dir / f"{service}.sqlite3")
