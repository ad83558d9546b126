"""Opens the database and the Redis client that a service's settings name. Every Redis command has a timeout."""

from datetime import UTC, datetime

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.storage.documents import Database
from shared.storage.settings import StorageSettings
from shared.storage.sqlite import SqliteDatabase

_SOCKET_TIMEOUT_SECONDS = 2.0
_POOL_WAIT_SECONDS = 2.0
_HEALTH_CHECK_SECONDS = 15


def open_database(settings: StorageSettings, service: str) -> Database:
    """Returns the service's database, not started yet.

    It is the MongoDB database `prompt_upgrader_<service>`, or the file `<service>.sqlite3` in the data folder if
    `MONGODB_URL` is not set.
    """
    if settings.mongodb_url is not None:
        # Imported here because the driver adds 18 MB to a process, which services on SQLite do not need.
        from shared.storage.mongodb import MongoDatabase

        return MongoDatabase(settings.mongodb_url.get_secret_value(), f"prompt_upgrader_{service}")
    return SqliteDatabase(settings.data_dir / f"{service}.sqlite3")


def open_redis(settings: StorageSettings, *, max_connections: int = 64) -> Redis:
    """Returns a client with its own connection pool; replies are bytes. It connects on first use.

    A blocking command (XREAD with BLOCK) must block for less than the socket timeout of 2 s. Close with `aclose()`.
    """
    pool = BlockingConnectionPool.from_url(
        settings.redis_url.get_secret_value(),
        max_connections=max_connections,
        timeout=_POOL_WAIT_SECONDS,
        socket_timeout=_SOCKET_TIMEOUT_SECONDS,
        socket_connect_timeout=_SOCKET_TIMEOUT_SECONDS,
        health_check_interval=_HEALTH_CHECK_SECONDS,
        # Retry lost connections only: retrying after a timeout would double the wait for an unresponsive server.
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), retries=2, supported_errors=(RedisConnectionError,)),
        decode_responses=False,
    )
    return Redis.from_pool(pool)


async def redis_now(redis: Redis) -> datetime:
    """Returns the time of the Redis server's clock, which is the same for all its clients. Raises RedisError."""
    seconds, microseconds = await redis.time()
    return datetime.fromtimestamp(seconds + microseconds / 1e6, UTC)
