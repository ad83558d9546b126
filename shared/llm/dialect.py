"""What the model's server understands, learned from its refusals, and the JSON schemas that structured answers are
asked with.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel

# Keywords that strict structured output does not take; pydantic checks them when the answer comes.
_NOT_STRICT = ("title", "default", "minLength", "maxLength", "examples")


@dataclass(frozen=True)
class ChatMessage:
    """One message to the model."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class ChatRequest:
    """A chat completion to ask for, before it is put into a server's dialect."""

    model: str
    messages: Sequence[ChatMessage]
    output: type[BaseModel]
    max_tokens: int
    temperature: float


@dataclass
class Dialect:
    """Starts with all that OpenAI itself understands, and gives up a feature that the server refuses.

    `stream` is None until the server has answered: True when it streams, False when it does not.
    """

    structured: Literal["json_schema", "json_object", "text"] = "json_schema"
    tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: bool = True
    stream: bool | None = None

    def chat_body(self, request: ChatRequest) -> dict[str, Any]:
        """The request's JSON body in this dialect."""
        messages = [{"role": message.role, "content": message.content} for message in request.messages]
        body: dict[str, Any] = {"model": request.model, "messages": messages, self.tokens_field: request.max_tokens}
        if self.temperature:
            body["temperature"] = request.temperature
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
        """Whether the server's refusal (its error's text) named a feature that can be done without from now on."""
        refusal = refusal.lower()
        if "response_format" in body_sent and ("response_format" in refusal or "json_schema" in refusal):
            return self._simpler_than(body_sent["response_format"]["type"])
        if "max_tokens" in body_sent and "max_completion_tokens" in refusal:
            self.tokens_field = "max_completion_tokens"
            return True
        if self.stream is not False and "stream" in refusal:
            self.stream = False
            return True
        if "temperature" in body_sent and "temperature" in refusal:
            self.temperature = False
            return True
        return False

    def _simpler_than(self, refused: str) -> bool:
        # Of many calls in flight with the same refused format only the first one takes the step.
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
    """The class's JSON schema as strict structured output wants it: every field required and no others."""
    schema = output.model_json_schema(by_alias=False)
    _make_strict(schema)
    return schema


@cache
def schema_instruction(output: type[BaseModel]) -> str:
    """What a server that takes no schema is told in words."""
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
