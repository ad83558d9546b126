"""Every prompt version as `prompts.changed.v1` tells of it, followed in memory, and which version a user gets."""

import asyncio
import contextlib
from collections import defaultdict
from dataclasses import dataclass

from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaError

from shared.contracts.prompts import PromptChanged, PromptStage, rollout_point
from shared.contracts.topics import PROMPTS_CHANGED
from shared.contracts.upgrade_results import Track
from shared.messaging.cloudevents import decode
from shared.messaging.errors import Undecodable
from shared.messaging.operate.topic_reading import follow_from_start
from shared.messaging.settings import KafkaSettings
from shared.observability.logs import get_logger

_RETRY_SECONDS = 1.0

log = get_logger(__name__)


class NoPrompt(Exception):
    """The registry has no version to use: it has not been filled yet, or the name is unknown."""


@dataclass(frozen=True)
class Choice:
    """The version that an upgrade uses, and why."""

    prompt: PromptChanged
    track: Track


class KnownPrompts:
    """The versions that are known. In memory; the last event of a version stands."""

    def __init__(self) -> None:
        self._by_id: dict[str, PromptChanged] = {}
        self._lines: dict[tuple[str | None, str], set[str]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._by_id)

    def apply(self, changed: PromptChanged) -> None:
        """Takes in one event. An older one than what is known of the version changes nothing."""
        known = self._by_id.get(changed.prompt_id)
        if known is None or known.occurred_at <= changed.occurred_at:
            self._by_id[changed.prompt_id] = changed
            self._lines[(changed.tenant_id, changed.name)].add(changed.prompt_id)

    def get(self, tenant_id: str, prompt_id: str) -> PromptChanged | None:
        """A version of the tenant or of the platform."""
        known = self._by_id.get(prompt_id)
        return known if known is not None and known.tenant_id in (tenant_id, None) else None

    def knows(self, tenant_id: str, name: str) -> bool:
        """Whether the tenant or the platform has a version of this name, in whatever stage."""
        return bool(self._lines.get((tenant_id, name)) or self._lines.get((None, name)))

    def choose(self, tenant_id: str, name: str, subject: str) -> Choice:
        """The version for a user: the tenant's own before the platform's, the canary below its share.

        `subject` is the user's keyed hash or the credential's id. Raises NoPrompt.
        """
        point = rollout_point(tenant_id, name, subject)
        own = self._of_line(tenant_id, name, point)
        if own is not None:
            return own
        platform = self._of_line(None, name, point)
        if platform is None:
            raise NoPrompt(name)
        return platform

    def _of_line(self, tenant_id: str | None, name: str, point: float) -> Choice | None:
        versions = [self._by_id[id] for id in self._lines.get((tenant_id, name), ())]
        for version in versions:
            if version.stage.is_canary and point < version.share:
                return Choice(version, "canary")
        # While a change is being published two versions may say that they are in production: the newer event stands.
        stable = [version for version in versions if version.stage is PromptStage.PRODUCTION]
        if not stable:
            return None
        return Choice(max(stable, key=lambda version: (version.occurred_at, version.version)), "stable")


class PromptRegistry:
    """Component: follows the topic from its start. Reads all of it before it is `loaded`."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._task: asyncio.Task[None] | None = None
        self.prompts = KnownPrompts()
        self.loaded = False
        self._changed = asyncio.Condition()

    async def start(self) -> None:
        self._task = asyncio.create_task(self._follow(), name="prompt registry")

    async def stop(self, grace_seconds: float) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def check(self) -> None:
        """A health check: raises until all of the topic has been read once."""
        if not self.loaded:
            raise NoPrompt("the prompt registry has not been read yet")

    async def find(self, tenant_id: str, prompt_id: str, wait_seconds: float) -> PromptChanged:
        """A version by id, waited for: its event may be on its way. Raises NoPrompt."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_seconds), self._changed:
                await self._changed.wait_for(lambda: self.prompts.get(tenant_id, prompt_id) is not None)
        known = self.prompts.get(tenant_id, prompt_id)
        if known is None:
            raise NoPrompt(prompt_id)
        return known

    async def _follow(self) -> None:
        while True:
            try:
                async for record in follow_from_start(self._settings, PROMPTS_CHANGED):
                    if record is None:
                        self.loaded = True
                        continue
                    self._apply(record)
                    async with self._changed:
                        self._changed.notify_all()
            except (KafkaError, OSError, TimeoutError) as error:
                # What is known goes on serving; a new log is read from its start.
                log.warning("prompt_registry_not_read", error=type(error).__name__)
            await asyncio.sleep(_RETRY_SECONDS)

    def _apply(self, record: ConsumerRecord) -> None:
        try:
            changed = decode(PROMPTS_CHANGED, record.value, record.headers).data
        except Undecodable as error:
            log.warning("prompt_change_not_read", error=str(error))
            return
        if isinstance(changed, PromptChanged):
            self.prompts.apply(changed)
