"""Parses the response bodies of an OpenAI-compatible server: chat completions and embeddings."""

import base64
import math
from array import array
from dataclasses import dataclass
from typing import Any

import orjson


class InvalidBody(Exception):
    """The body does not follow the protocol. `hint` says why."""

    def __init__(self, hint: str) -> None:
        super().__init__(hint)
        self.hint = hint


@dataclass(frozen=True)
class ChatAnswer:
    """The first choice of a chat completion."""

    text: str
    refused: bool
    cut_off: bool


def json_object(content: bytes) -> dict[str, Any] | None:
    """The JSON object in a body, or None when the body is something else."""
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    return body if isinstance(body, dict) else None


def read_chat(body: dict[str, Any] | None) -> ChatAnswer:
    """The answer in the body of a chat completion. Raises InvalidBody."""
    choices = (body or {}).get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise InvalidBody("it is not a chat completion")
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise InvalidBody("it is not a chat completion")
    reason = choices[0].get("finish_reason")
    content = message.get("content")
    return ChatAnswer(
        text=content if isinstance(content, str) else "",
        refused=bool(message.get("refusal")) or reason == "content_filter",
        cut_off=reason == "length",
    )


def read_embeddings(body: dict[str, Any] | None, count: int) -> list[list[float]]:
    """`count` vectors of equal length, in the order of the texts. Raises InvalidBody."""
    data = (body or {}).get("data")
    if not isinstance(data, list) or len(data) != count:
        raise InvalidBody("it does not hold one embedding per text")
    vectors: list[list[float]] = [[] for _ in range(count)]
    for position, item in enumerate(data):
        if not isinstance(item, dict):
            raise InvalidBody("it is not a list of embeddings")
        index = item.get("index", position)
        if not isinstance(index, int) or not 0 <= index < count:
            raise InvalidBody("its embeddings are not numbered as the texts are")
        vectors[index] = _vector(item.get("embedding"))
    if not vectors[0] or len({len(vector) for vector in vectors}) != 1:
        raise InvalidBody("its embeddings are not of one length")
    return vectors


def _vector(value: Any) -> list[float]:
    if isinstance(value, str):
        try:
            values = array("f", base64.b64decode(value, validate=True)).tolist()
        except ValueError:
            raise InvalidBody("an embedding is not base64 of 32-bit floats") from None
    elif isinstance(value, list) and all(isinstance(item, int | float) for item in value):
        values = [float(item) for item in value]
    else:
        raise InvalidBody("an embedding is not a list of numbers")
    if not all(math.isfinite(item) for item in values):
        raise InvalidBody("an embedding holds a number that is not finite")
    return values
