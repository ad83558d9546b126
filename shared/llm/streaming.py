"""Assembles a streamed chat completion, with a time limit between lines and none on the whole answer."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson


class Silence(Exception):
    """No data arrived within the time limit."""


class StreamedAnswer:
    """Assembles the chunks of a streamed chat completion into the body of a completion without streaming."""

    def __init__(self) -> None:
        self._body: dict[str, Any] = {}
        self._content: list[str] = []
        self._refusal: list[str] = []
        self._finish_reason: str | None = None

    def add(self, line: str) -> bool:
        """Adds one line of the event stream. Returns whether it was the last one."""
        if not line.startswith("data:"):
            return False
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return True
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            return False
        if isinstance(chunk, dict):
            self._take(chunk)
        return False

    def body(self) -> bytes:
        """The assembled body as JSON."""
        message = {"role": "assistant", "content": "".join(self._content), "refusal": "".join(self._refusal) or None}
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason}
        return orjson.dumps({**self._body, "object": "chat.completion", "choices": [choice]})

    def _take(self, chunk: dict[str, Any]) -> None:
        for name in ("id", "model", "usage", "error"):
            if chunk.get(name):
                self._body[name] = chunk[name]
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return
        delta = choices[0].get("delta") or {}
        if isinstance(delta.get("content"), str):
            self._content.append(delta["content"])
        if isinstance(delta.get("refusal"), str):
            self._refusal.append(delta["refusal"])
        self._finish_reason = choices[0].get("finish_reason") or self._finish_reason


async def next_line(lines: AsyncIterator[str], silence_seconds: float) -> str | None:
    """The next line of a stream, None at its end. Raises Silence when none arrives in time."""
    try:
        async with asyncio.timeout(silence_seconds):
            return await anext(lines, None)
    except TimeoutError:
        raise Silence from None
