"""What the model's server was found to understand. OpenAI-compatible servers differ; one refusal is enough to learn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from shared.llm.structured_output import schema_instruction, schema_name, strict_schema


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
    """Starts with all that OpenAI itself understands, and gives up a feature that the server refuses."""

    structured: Literal["json_schema", "json_object", "text"] = "json_schema"
    tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: bool = True

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
