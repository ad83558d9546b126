"""HTTP routes of the offline model: the part of the OpenAI API that the services use, without streaming."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import orjson
from pydantic import BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deploy.local.offline_model import chat, embedder

_MAX_BODY_BYTES = 32 * 1024 * 1024
_MAX_TEXTS = 2048


class Message(BaseModel):
    """A chat message; `text()` joins content that is sent in parts."""

    role: str
    content: str | list[dict[str, Any]] | None = None

    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(str(part.get("text", "")) for part in self.content)
        return self.content or ""


class ChatBody(BaseModel):
    """Body of `POST /v1/chat/completions`. Sampling parameters are ignored, because the rules are deterministic."""

    model: str = chat.MODEL
    messages: list[Message] = Field(min_length=1)
    response_format: dict[str, Any] = {}
    stream: bool = False


class EmbeddingsBody(BaseModel):
    """Body of `POST /v1/embeddings`."""

    model: str = embedder.MODEL
    input: str | list[str]
    encoding_format: str = "float"


class OfflineModel:
    """The routes, on one embedder. The work runs in one thread, so health checks are answered meanwhile."""

    def __init__(self) -> None:
        self._embedder = embedder.Embedder()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rules")

    async def health(self, _: Request) -> Response:
        return _json({"status": "ok", "offline": True})

    async def models(self, _: Request) -> Response:
        names = (chat.MODEL, embedder.MODEL)
        return _json(
            {
                "object": "list",
                "data": [{"id": name, "object": "model", "created": 0, "owned_by": "local"} for name in names],
            }
        )

    async def chat(self, request: Request) -> Response:
        try:
            body = ChatBody.model_validate_json(await _body(request))
        except (ValidationError, _TooLarge) as error:
            return _bad_request(error)
        if body.stream:
            return _error(400, "The offline model does not stream.", "stream")
        return _json(await self._in_thread(self._complete, body))

    async def embeddings(self, request: Request) -> Response:
        try:
            body = EmbeddingsBody.model_validate_json(await _body(request))
        except (ValidationError, _TooLarge) as error:
            return _bad_request(error)
        texts = [body.input] if isinstance(body.input, str) else body.input
        if not texts or len(texts) > _MAX_TEXTS:
            return _error(400, f"'input' must hold 1 to {_MAX_TEXTS} texts.", "input")
        return _json(await self._in_thread(self._embed, texts, body.encoding_format))

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, work: Any, *arguments: Any) -> dict[str, Any]:
        result: dict[str, Any] = await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
        return result

    def _complete(self, body: ChatBody) -> dict[str, Any]:
        messages = [{"role": message.role, "content": message.text()} for message in body.messages]
        content = chat.answer(messages, body.response_format, self._embedder)
        tokens_in = sum(self._embedder.tokens(message["content"]) for message in messages)
        tokens_out = self._embedder.tokens(content)
        return {
            "id": f"chatcmpl-offline-{time.time_ns():x}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": chat.MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": content, "refusal": None},
                    "finish_reason": "stop",
                    "logprobs": None,
                }
            ],
            "usage": {
                "prompt_tokens": tokens_in,
                "completion_tokens": tokens_out,
                "total_tokens": tokens_in + tokens_out,
            },
        }

    def _embed(self, texts: list[str], encoding: str) -> dict[str, Any]:
        data = []
        tokens = 0
        for index, text in enumerate(texts):
            vector, count = self._embedder.embed(text)
            tokens += count
            data.append({"object": "embedding", "index": index, "embedding": _encoded(vector, encoding)})
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "model": embedder.MODEL, "data": data, "usage": usage}


def build_app() -> Starlette:
    """Returns the application; loads the embeddings."""
    model = OfflineModel()
    return Starlette(
        routes=[
            Route("/health", model.health, methods=["GET"]),
            Route("/v1/models", model.models, methods=["GET"]),
            Route("/v1/chat/completions", model.chat, methods=["POST"]),
            Route("/v1/embeddings", model.embeddings, methods=["POST"]),
        ],
        lifespan=model.lifespan,
    )


class _TooLarge(Exception):
    pass


async def _body(request: Request) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > _MAX_BODY_BYTES:
            raise _TooLarge
        chunks.append(chunk)
    return b"".join(chunks)


def _encoded(vector: embedder.Vector, encoding: str) -> str | list[float]:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in np.round(vector, 7)]


def _json(value: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(value), status_code=status, media_type="application/json")


def _bad_request(error: ValidationError | _TooLarge) -> Response:
    if isinstance(error, _TooLarge):
        return _error(413, f"The body is larger than {_MAX_BODY_BYTES} bytes.", None)
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in fault["loc"]) or None
    return _error(400, f"Invalid request: {fault['msg']}", field)


def _error(status: int, message: str, param: str | None) -> Response:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": None}
    return _json({"error": error}, status)
