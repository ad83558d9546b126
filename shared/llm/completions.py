"""A chat completion as an instance of a class: asked for, checked, and once more with a hint where it is not one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from pydantic import BaseModel

from shared.llm.answers import ChatAnswer, Garbage, json_object, read_chat
from shared.llm.counting import count_request
from shared.llm.dialect import ChatMessage, ChatRequest
from shared.llm.errors import ModelAnswerInvalid, ModelRefused
from shared.llm.measuring import Outcome
from shared.llm.sending import Call, Requests
from shared.llm.structured_output import NotTheOutput, parse_output

T = TypeVar("T", bound=BaseModel)

_PATH = "/chat/completions"
_LONGEST_ANSWER = 65_536
_CHARACTERS_OF_A_TOKEN = 16


class _Unusable(Exception):
    """The model answered, but not with the output."""

    def __init__(self, hint: str, detail: str, text: str = "") -> None:
        super().__init__(hint)
        self.hint = hint
        self.detail = detail
        self.text = text


async def complete(requests: Requests, request: ChatRequest, output: type[T], call: Call, outcome: Outcome) -> T:
    """The model's answer to `request` as an `output`. Raises a ModelError."""
    try:
        return await _ask(requests, request, output, call)
    except _Unusable as unusable:
        outcome.repaired = True
        messages = _with_hint(request.messages, unusable)
    try:
        return await _ask(requests, replace(request, messages=messages), output, call)
    except _Unusable as unusable:
        raise ModelAnswerInvalid(unusable.detail, call.spending.usage()) from None


async def _ask(requests: Requests, request: ChatRequest, output: type[T], call: Call) -> T:
    content = await requests.send(_PATH, lambda dialect: dialect.chat_body(request), call)
    body = json_object(content)
    answer = _read(body)
    call.spending.add_answer(
        body, sent=[message.content for message in request.messages], received=answer.text if answer else ""
    )
    try:
        value = _value(answer, request, output, call)
    except (_Unusable, ModelRefused) as fault:
        count_request(call.operation, "refused" if isinstance(fault, ModelRefused) else "invalid")
        raise
    count_request(call.operation, "ok")
    return value


def _value(answer: ChatAnswer | None, request: ChatRequest, output: type[T], call: Call) -> T:
    if answer is None:
        raise _Unusable("it was not a chat completion", "The model's server answered, but not with a chat completion.")
    if answer.refused:
        raise ModelRefused("The model declined to answer this request.", call.spending.usage())
    if answer.cut_off:
        raise _Unusable(
            f"it was cut off at {request.max_tokens} tokens: answer more briefly",
            f"The model's answer was cut off at its limit of {request.max_tokens} tokens.",
        )
    if len(answer.text) > max(_LONGEST_ANSWER, request.max_tokens * _CHARACTERS_OF_A_TOKEN):
        # A server that takes no notice of its limit; what comes after this has limits too.
        raise _Unusable("it was far too long: answer more briefly", "The model's answer was far too long.")
    if not answer.text.strip():
        raise _Unusable("it was empty", "The model's answer was empty.")
    try:
        return parse_output(answer.text, output)
    except NotTheOutput as fault:
        raise _Unusable(
            fault.hint, "The model's answer did not have the form that was asked for.", answer.text
        ) from None


def _read(body: dict[str, object] | None) -> ChatAnswer | None:
    try:
        return read_chat(body)
    except Garbage:
        return None


def _with_hint(messages: Sequence[ChatMessage], unusable: _Unusable) -> list[ChatMessage]:
    answered = [ChatMessage("assistant", unusable.text)] if unusable.text else []
    hint = f"Your last answer could not be used: {unusable.hint}. Answer again with the one JSON object asked for."
    return [*messages, *answered, ChatMessage("user", hint)]
