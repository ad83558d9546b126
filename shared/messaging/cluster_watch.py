"""Detects a replaced Kafka cluster by its cluster id.

A new id means a new, empty log: offsets of the old one are invalid, and records that were not read are lost.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from shared.messaging.connection import make_admin
from shared.messaging.settings import KafkaSettings
from shared.observability.logs import get_logger

_EVERY_SECONDS = 1.0
_ANSWER_WITHIN_SECONDS = 5.0

OnChange = Callable[[str, str], Awaitable[None]]

log = get_logger(__name__)


class ClusterWatch:
    """Polls the cluster id every second and calls `on_change(old, new)` when it differs. Component.

    A callback that raises is called again with the next poll, so that no change is missed. `cluster_id` is the last
    id, None before the first response. `last_answer` is the monotonic time of the last response.
    """

    def __init__(
        self, settings: KafkaSettings, on_change: OnChange | None = None, every_seconds: float = _EVERY_SECONDS
    ) -> None:
        self._settings = settings
        self._on_change = on_change
        self._every = every_seconds
        self._admin: AIOKafkaAdminClient | None = None
        self._asking = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.cluster_id: str | None = None
        self.last_answer: float | None = None

    async def start(self) -> None:
        """Starts polling; does not wait for the first response."""
        self._task = asyncio.create_task(self._watch(), name="cluster-watch")

    async def stop(self, grace_seconds: float) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._disconnect()

    async def ask(self) -> str:
        """Returns the current cluster id. Raises KafkaError, OSError or TimeoutError when no broker responds."""
        try:
            async with self._asking, asyncio.timeout(_ANSWER_WITHIN_SECONDS):
                if self._admin is None:
                    self._admin = make_admin(self._settings)
                    await self._admin.start()
                answer = await self._admin.describe_cluster()
        except BaseException:
            await self._disconnect()
            raise
        self.last_answer = time.monotonic()
        return str(answer["cluster_id"])

    async def _watch(self) -> None:
        while True:
            try:
                await self._check()
            except (KafkaError, OSError, TimeoutError) as error:
                log.debug("cluster_not_reached", error=type(error).__name__)
            except Exception as error:
                log.error("cluster_change_not_handled", error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(self._every)

    async def _check(self) -> None:
        new, old = await self.ask(), self.cluster_id
        if old is not None and new != old:
            log.warning("cluster_replaced", old=old, new=new)
            if self._on_change is not None:
                await self._on_change(old, new)
        self.cluster_id = new

    async def _disconnect(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                await asyncio.wait_for(admin.close(), _ANSWER_WITHIN_SECONDS)
