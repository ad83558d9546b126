"""Loading the statistical language model at the start: it takes a second or two, which no upgrade should wait for."""

import asyncio

from services.upgrader.language import load_language_model


class LanguageModelLoading:
    """A component that loads the model in a thread while the service starts. Until then, whoever needs it loads it."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to load; does not wait for it."""
        self._task = asyncio.create_task(asyncio.to_thread(load_language_model))

    async def stop(self, grace_seconds: float) -> None:
        """Waits for the thread, which cannot be cut short, within the grace."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=grace_seconds)
