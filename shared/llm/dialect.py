"""Builds chat requests in the dialect of the server: which optional features of OpenAI's protocol it supports.

The dialect is learned from the server's refusals. Structured output is requested with a strict JSON schema where the
server supports that, else with an instruction in the system message.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel

# Keywords that strict structured output does not support. pydantic checks them when it parses the answer.
_NOT_STRICT = ("title", "default", "minLength", "maxLength", "examples")


@dataclass(frozen=True)
class ChatMessage:
    """One message to the model."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class ChatRequest:
    """A request for a chat completion, independent of the server's dialect."""

    model: str
    messages: Sequence[ChatMessage]
    output: type[BaseModel]
    max_tokens: int
    temperature: float


@dataclass
class Dialect:
    """What the server supports. Starts with everything that OpenAI supports, and drops features that are refused.

    `stream` is None until the first answer shows whether the server streams.
    """

    structured: Literal["json_schema", "json_object", "text"] = "json_schema"
    tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: bool = True
    stream: bool | None = None

    def chat_body(self, request: ChatRequest) -> dict[str, Any]:
        """The JSON body of a request in this dialect."""
        messages = [{"role": message.role, "content": message.content} for message in request.messages]
        body: dict[str, Any] = {"model": request.model, "messages": messages, self.tokens_field: request.max_tokens}
        if self.temperature:
            body["temperature"] = request.temperature
        if self.stream is not False:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.structured == "json_schema":
            name, schema = schema_name(request.output), strict_schema(request.output)
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": name, "strict": True, "schema": schema},
            }
            return body
        instruction = schema_instruction(request.output)
        if messages and messages[0]["role"] == "system":
            messages[0]["content"] += f"\n\n{instruction}"
        else:
            messages.insert(0, {"role": "system", "content": instruction})
        if self.structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def learn(self, body_sent: dict[str, Any], refusal: str) -> bool:
        """Drops the feature that the server's error text names. Returns whether a repeat without it may succeed.

        Many calls in flight may be refused for the same feature; each of them is repeated.
        """
        refusal = refusal.lower()
        if "response_format" in body_sent and ("response_format" in refusal or "json_schema" in refusal):
            return self._drop_response_format(body_sent["response_format"]["type"])
        if "max_tokens" in body_sent and "max_completion_tokens" in refusal:
            self.tokens_field = "max_completion_tokens"
            return True
        if "stream" in body_sent and "stream" in refusal:
            self.stream = False
            return True
        if "temperature" in body_sent and "temperature" in refusal:
            self.temperature = False
            return True
        return False

    def _drop_response_format(self, refused: str) -> bool:
        # Many calls in flight may be refused with the same format; only the first of them changes the dialect.
        if refused == "json_schema" and self.structured == "json_schema":
            self.structured = "json_object"
        elif refused == "json_object" and self.structured == "json_object":
            self.structured = "text"
        return True


@cache
def schema_name(output: type[BaseModel]) -> str:
    """The class's name in snake_case: `PromptRewrite` -> `prompt_rewrite`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", output.__name__).lower()


@cache
def strict_schema(output: type[BaseModel]) -> dict[str, Any]:
    """The class's JSON schema for strict structured output: every field required, no additional ones."""
    schema = output.model_json_schema(by_alias=False)
    _make_strict(schema)
    return schema


@cache
def schema_instruction(output: type[BaseModel]) -> str:
    """The instruction in words for a server that does not support schemas."""
    schema = json.dumps(strict_schema(output), separators=(",", ":"))
    return f"Answer with one JSON object and nothing else. It must match this JSON schema:\n{schema}"


def _make_strict(node: Any) -> None:
    if isinstance(node, list):
        for item in node:
            _make_strict(item)
    if not isinstance(node, dict):
        return
    properties = node.get("properties")
    if isinstance(properties, dict):
        node["required"] = list(properties)
        node["additionalProperties"] = False
        for child in properties.values():
            _make_strict(child)
    for keyword in _NOT_STRICT:
        node.pop(keyword, None)
    for keyword, child in node.items():
        if keyword in ("$defs", "definitions"):
            for definition in child.values():
                _make_strict(definition)
        elif keyword != "properties":
            _make_strict(child)
