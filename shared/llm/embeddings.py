"""Embeddings of texts, in requests of a bounded size."""

from collections.abc import Sequence

from shared.llm.answers import Garbage, json_object, read_embeddings
from shared.llm.counting import count_request
from shared.llm.errors import ModelAnswerInvalid
from shared.llm.measuring import Outcome
from shared.llm.sending import Call, Requests

_PATH = "/embeddings"
_TEXTS_PER_REQUEST = 256


async def embed(
    requests: Requests, model: str, texts: Sequence[str], call: Call, outcome: Outcome
) -> list[list[float]]:
    """One vector per text, in their order. A body that holds none is asked for once more. Raises a ModelError."""
    vectors: list[list[float]] = []
    for start in range(0, len(texts), _TEXTS_PER_REQUEST):
        batch = [text or " " for text in texts[start : start + _TEXTS_PER_REQUEST]]  # servers refuse an empty text
        try:
            vectors += await _embed_batch(requests, model, batch, call)
        except Garbage as garbage:
            if outcome.repaired:
                raise _invalid(garbage, call) from None
            outcome.repaired = True
            vectors += await _embed_batch_again(requests, model, batch, call)
    return vectors


async def _embed_batch_again(requests: Requests, model: str, batch: list[str], call: Call) -> list[list[float]]:
    try:
        return await _embed_batch(requests, model, batch, call)
    except Garbage as garbage:
        raise _invalid(garbage, call) from None


async def _embed_batch(requests: Requests, model: str, batch: list[str], call: Call) -> list[list[float]]:
    request = {"model": model, "input": batch, "encoding_format": "base64"}
    body = json_object(await requests.send(_PATH, lambda _: request, call))
    try:
        vectors = read_embeddings(body, len(batch))
    except Garbage:
        count_request(call.operation, "invalid")
        call.spending.add_answer(body, sent=batch)
        raise
    count_request(call.operation, "ok")
    call.spending.add_answer(body, sent=batch, embeddings=len(batch))
    return vectors


def _invalid(garbage: Garbage, call: Call) -> ModelAnswerInvalid:
    return ModelAnswerInvalid(f"The model's answer cannot be used: {garbage.hint}.", call.spending.usage())
