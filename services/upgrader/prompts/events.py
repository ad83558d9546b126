"""Publishes changed versions as `prompts.changed.v1`, and stores the platform's versions at start."""

from services.upgrader.prompts.library import PromptLibrary
from shared.contracts.prompts import PromptChanged
from shared.contracts.topics import PROMPTS_CHANGED
from shared.messaging.publish.producer import EventProducer


class PromptEvents:
    """`Publish` of the library. What cannot be published now stays marked, and the library's sweep publishes it."""

    def __init__(self, producer: EventProducer) -> None:
        self._producer = producer

    async def __call__(self, event_id: str, key: str, changed: PromptChanged) -> None:
        """Raises Transient when the broker does not take it."""
        await self._producer.publish(PROMPTS_CHANGED, key, changed, event_id=event_id)


class PlatformPrompts:
    """Component: the versions that come with the product are in the store before the first upgrade is read."""

    def __init__(self, library: PromptLibrary) -> None:
        self._library = library

    async def start(self) -> None:
        await self._library.install_platform()

    async def stop(self, grace_seconds: float) -> None: ...
