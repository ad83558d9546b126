"""Model calls on top of single requests: chat completions parsed into a class, and embeddings in batches.

An unusable answer is repaired once: chat requests are repeated with a hint at the fault if the caller allows it,
embedding requests as they are.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import TypeVar

from pydantic import BaseModel

from shared.contracts.token_bounds import token_bound
from shared.llm.answers import ChatAnswer, InvalidBody, json_object, read_chat, read_embeddings
from shared.llm.dialect import ChatMessage, ChatRequest, schema_instruction
from shared.llm.errors import ModelAnswerInvalid, ModelRefused
from shared.llm.lenient_json import InvalidOutput, read_output
from shared.llm.measuring import Outcome
from shared.llm.sending import Call, Requests
from shared.llm.usage import count_request

T = TypeVar("T", bound=BaseModel)
MayRepair = Callable[[int], Awaitable[bool]]
"""Decides whether an unusable answer may be repaired. The argument is the token bound of the repair request."""
_CHAT_PATH = "/chat/completions"
# Longest accepted answer in characters: this, or more if `max_tokens` allows more.
_MAX_ANSWER_CHARACTERS = 65_536
_MAX_CHARACTERS_PER_TOKEN = 16
_EMBEDDINGS_PATH = "/embeddings"
_TEXTS_PER_REQUEST = 256


async def always(tokens: int) -> bool:
    """Allows every repair."""
    return True


async def never(tokens: int) -> bool:
    """Allows no repair."""
    return False


def most_tokens(messages: Sequence[ChatMessage], output: type[BaseModel], max_tokens: int) -> int:
    """Upper bound of the tokens that a request with these messages uses, including its answer."""
    return sum(token_bound(message.content) for message in messages) + _schema_tokens(output) + max_tokens


async def complete(
    requests: Requests, request: ChatRequest, output: type[T], call: Call, outcome: Outcome, may_repair: MayRepair
) -> T:
    """The answer to `request` as an `output`, with one repair if `may_repair` allows it. Raises a ModelError."""
    try:
        return await _complete_once(requests, request, output, call)
    except _Unusable as unusable:
        messages = _with_hint(request.messages, unusable)
        if not await may_repair(most_tokens(messages, output, request.max_tokens)):
            raise ModelAnswerInvalid(unusable.detail, call.spending.usage()) from None
        outcome.repaired = True
    try:
        return await _complete_once(requests, replace(request, messages=messages), output, call)
    except _Unusable as unusable:
        raise ModelAnswerInvalid(unusable.detail, call.spending.usage()) from None


async def embed(
    requests: Requests, model: str, texts: Sequence[str], call: Call, outcome: Outcome
) -> list[list[float]]:
    """One vector per text, in the order of the texts. Repeats an invalid response once. Raises a ModelError."""
    vectors: list[list[float]] = []
    for start in range(0, len(texts), _TEXTS_PER_REQUEST):
        batch = [text or " " for text in texts[start : start + _TEXTS_PER_REQUEST]]  # servers refuse an empty text
        try:
            vectors += await _embed_batch(requests, model, batch, call)
        except InvalidBody as fault:
            if outcome.repaired:
                raise _invalid_answer(fault, call) from None
            outcome.repaired = True
            vectors += await _embed_batch_again(requests, model, batch, call)
    return vectors


class _Unusable(Exception):
    """A chat answer without the requested output. `hint` is for the model, `detail` for the end user."""

    def __init__(self, hint: str, detail: str, text: str = "") -> None:
        super().__init__(hint)
        self.hint = hint
        self.detail = detail
        self.text = text


@cache
def _schema_tokens(output: type[BaseModel]) -> int:
    return token_bound(schema_instruction(output))


async def _complete_once(requests: Requests, request: ChatRequest, output: type[T], call: Call) -> T:
    content = await requests.send(_CHAT_PATH, lambda dialect: dialect.chat_body(request), call)
    body = json_object(content)
    answer = _chat_answer(body)
    call.spending.add_answer(
        body, sent=[message.content for message in request.messages], received=answer.text if answer else ""
    )
    try:
        value = _output_of(answer, request, output, call)
    except (_Unusable, ModelRefused) as fault:
        count_request(call.operation, "refused" if isinstance(fault, ModelRefused) else "invalid")
        raise
    count_request(call.operation, "ok")
    return value


def _output_of(answer: ChatAnswer | None, request: ChatRequest, output: type[T], call: Call) -> T:
    if answer is None:
        raise _Unusable("it was not a chat completion", "The model's server answered, but not with a chat completion.")
    if answer.refused:
        raise ModelRefused("The model declined to answer this request.", call.spending.usage())
    if len(answer.text) > max(_MAX_ANSWER_CHARACTERS, request.max_tokens * _MAX_CHARACTERS_PER_TOKEN):
        # Some servers ignore `max_tokens`, and what follows (stores, topics) has size limits.
        raise _Unusable("it was far too long: answer more briefly", "The model's answer was far too long.")
    if not answer.text.strip() and not answer.cut_off:
        raise _Unusable("it was empty", "The model's answer was empty.")
    try:
        return read_output(answer.text, output, cut_off=answer.cut_off)
    except InvalidOutput as fault:
        if answer.cut_off:
            raise _Unusable(
                f"it was cut off at {request.max_tokens} tokens: answer more briefly",
                f"The model's answer was cut off at its limit of {request.max_tokens} tokens.",
            ) from None
        raise _Unusable(
            fault.hint, "The model's answer did not have the form that was asked for.", answer.text
        ) from None


def _chat_answer(body: dict[str, object] | None) -> ChatAnswer | None:
    try:
        return read_chat(body)
    except InvalidBody:
        return None


def _with_hint(messages: Sequence[ChatMessage], unusable: _Unusable) -> list[ChatMessage]:
    answered = [ChatMessage("assistant", unusable.text)] if unusable.text else []
    hint = f"Your last answer could not be used: {unusable.hint}. Answer again with the one JSON object asked for."
    return [*messages, *answered, ChatMessage("user", hint)]


async def _embed_batch_again(requests: Requests, model: str, batch: list[str], call: Call) -> list[list[float]]:
    try:
        return await _embed_batch(requests, model, batch, call)
    except InvalidBody as fault:
        raise _invalid_answer(fault, call) from None


async def _embed_batch(requests: Requests, model: str, batch: list[str], call: Call) -> list[list[float]]:
    request = {"model": model, "input": batch, "encoding_format": "base64"}
    body = json_object(await requests.send(_EMBEDDINGS_PATH, lambda _: request, call))
    try:
        vectors = read_embeddings(body, len(batch))
    except InvalidBody:
        count_request(call.operation, "invalid")
        call.spending.add_answer(body, sent=batch)
        raise
    count_request(call.operation, "ok")
    call.spending.add_answer(body, sent=batch, embeddings=len(batch))
    return vectors


def _invalid_answer(fault: InvalidBody, call: Call) -> ModelAnswerInvalid:
    return ModelAnswerInvalid(f"The model's answer cannot be used: {fault.hint}.", call.spending.usage())
