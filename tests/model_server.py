"""A scripted OpenAI-compatible server: it answers, refuses, truncates, hangs or disconnects as requested.

In a test, import the fixture and request it:

    from tests.model_server import scripted_model as scripted_model

    async def test_...(scripted_model: ModelServer) -> None:
        scripted_model.script(Step(status=429, headers={"Retry-After": "1"}), Step(kind="answer"))

As a separate process (`python -m tests.model_server --port P`) it is controlled over `/control`:
`PUT /control/behaviour` takes a `Behaviour`, `POST /control/script` a list of `Step`s, `GET /control/requests` returns
every request received, `GET /control/stats` the counts, `DELETE /control/requests` deletes them.
"""

import argparse
import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Literal

import pytest
from aiohttp import web
from pydantic import BaseModel, ConfigDict, TypeAdapter

from tests.model_answers import default_answer, embeddings_answer

Path = Literal["chat", "embeddings", "any"]
Kind = Literal[
    "answer", "garbage", "not_json", "empty", "refusal", "filtered", "length", "hang", "cut", "cut_body", "text"
]


class Step(BaseModel):
    """How to answer one request, or the next `times` ones. A `status` other than 200 is an error answer."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind = "answer"
    path: Path = "any"
    status: int = 200
    headers: dict[str, str] = {}
    error: dict[str, Any] = {}
    text: str = ""
    delay_seconds: float = 0.0
    times: int = 1


class Behaviour(BaseModel):
    """How to answer requests without a step."""

    model_config = ConfigDict(extra="forbid")

    default: Step = Step()
    latency_seconds: float = 0.0
    chat_model: str = "scripted-chat"
    embedding_model: str = "scripted-embedding"
    dimensions: int = 256
    usage: bool = True
    json_schema: bool = True
    json_object: bool = True
    max_tokens: bool = True
    temperature: bool = True
    encoding_base64: bool = True
    stream: bool = True
    chunk_seconds: float | None = None
    keep_requests: bool = True


class Received(BaseModel):
    """One received request."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float


class ModelServer:
    """The server; `url` is its address with `/v1`."""

    def __init__(self) -> None:
        self.behaviour = Behaviour()
        self.requests: deque[Received] = deque(maxlen=100_000)
        self.total = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.url = ""
        self._steps: list[Step] = []
        self._closing = asyncio.Event()
        self._runner: web.AppRunner | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Starts listening; port 0 chooses a free one."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/embeddings", self._embeddings)
        app.router.add_get("/health", self._health)
        app.router.add_put("/control/behaviour", self._put_behaviour)
        app.router.add_post("/control/script", self._post_script)
        app.router.add_get("/control/requests", self._get_requests)
        app.router.add_delete("/control/requests", self._delete_requests)
        app.router.add_get("/control/stats", self._get_stats)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=0.5, handler_cancellation=True
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, backlog=2048).start()
        self.url = f"http://{host}:{self._runner.addresses[0][1]}/v1"

    async def stop(self) -> None:
        """Ends hanging requests and closes the server."""
        self._closing.set()
        if self._runner is not None:
            await self._runner.cleanup()

    def script(self, *steps: Step) -> None:
        """Appends steps. Each is used, in order, for one request that matches its `path`."""
        self._steps.extend(step.model_copy() for step in steps)

    def received(self, path: Path = "any") -> list[Received]:
        """Returns the requests received so far."""
        return [item for item in self.requests if path == "any" or item.path == path]

    def reset(self) -> None:
        """Restores the default behaviour and deletes steps and received requests."""
        self.behaviour = Behaviour()
        self._steps.clear()
        self.requests.clear()
        self.total = self.most_in_flight = 0

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._handle(request, "chat")

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        return await self._handle(request, "embeddings")

    async def _handle(self, request: web.Request, path: Path) -> web.StreamResponse:
        body = await request.json()
        self.total += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.behaviour.keep_requests:
                headers = dict(request.headers)
                self.requests.append(Received(path=path, headers=headers, body=body, at=time.time()))
            refusal = self._feature_refusal(body)
            if refusal is not None:
                return _error(400, *refusal)
            step = self._next_step(path)
            await self._pause(self.behaviour.latency_seconds + step.delay_seconds)
            return await self._do(step, request, path, body)
        finally:
            self.in_flight -= 1

    def _next_step(self, path: Path) -> Step:
        for step in self._steps:
            if step.path in ("any", path):
                step.times -= 1
                if step.times <= 0:
                    self._steps.remove(step)
                return step
        default = self.behaviour.default
        return default if default.path in ("any", path) else Step()

    async def _pause(self, seconds: float) -> None:
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), seconds)

    async def _do(self, step: Step, request: web.Request, path: Path, body: dict[str, Any]) -> web.StreamResponse:
        if step.status != 200:
            return _error(step.status, "scripted", "", headers=step.headers, error=step.error)
        match step.kind:
            case "hang":
                await self._closing.wait()
                return web.Response(status=503)
            case "cut" | "cut_body":
                return await _cut(request, within_body=step.kind == "cut_body")
            case "not_json":
                return web.Response(text="<html>Bad gateway</html>", content_type="text/html")
            case "garbage":
                return web.json_response({"object": "garbage", "choices": [], "data": 7})
            case _:
                answer = self._embedded(body) if path == "embeddings" else self._completed(step, body)
                if body.get("stream") and self.behaviour.chunk_seconds is not None:
                    return await self._streamed(request, answer, self.behaviour.chunk_seconds)
                return web.json_response(answer, headers=step.headers)

    async def _streamed(self, request: web.Request, answer: dict[str, Any], chunk_seconds: float) -> web.StreamResponse:
        """The answer in ten chunks, `chunk_seconds` apart, as OpenAI streams it."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        common = {"id": answer["id"], "object": "chat.completion.chunk", "model": answer["model"]}
        choice = answer["choices"][0]
        text = choice["message"]["content"] or ""
        size = max(1, -(-len(text) // 10))
        deltas = [{"content": text[start : start + size]} for start in range(0, len(text), size)]
        events: list[dict[str, Any]] = [
            {**common, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
        ]
        events.append({**common, "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]})
        if "usage" in answer:
            events.append({**common, "choices": [], "usage": answer["usage"]})
        for event in events:
            await self._pause(chunk_seconds)
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    def _feature_refusal(self, body: dict[str, Any]) -> tuple[str, str] | None:
        behaviour = self.behaviour
        form = body.get("response_format", {}).get("type")
        if (form == "json_schema" and not behaviour.json_schema) or (
            form == "json_object" and not behaviour.json_object
        ):
            return f"Invalid parameter: 'response_format' of type '{form}' is not supported", "response_format"
        if "max_tokens" in body and not behaviour.max_tokens:
            return "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "max_tokens"
        if "stream" in body and not behaviour.stream:
            return "Unrecognized request argument: stream", "stream"
        if "temperature" in body and not behaviour.temperature:
            return "Unsupported value: 'temperature' does not support 0.2 with this model.", "temperature"
        return None

    def _completed(self, step: Step, body: dict[str, Any]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
        reason = {"length": "length", "filtered": "content_filter"}.get(step.kind, "stop")
        if step.kind == "refusal":
            message["refusal"] = "I cannot help with that."
        elif step.kind == "text":
            message["content"] = step.text
        elif step.kind == "empty":
            message["content"] = ""
        elif step.kind == "length":
            message["content"] = default_answer(body)[:10]
        elif step.kind == "answer":
            message["content"] = step.text or default_answer(body)
        answer: dict[str, Any] = {
            "id": "chatcmpl-scripted",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.behaviour.chat_model,
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        }
        if self.behaviour.usage:
            sent = sum(len(str(item.get("content", "")).split()) for item in body.get("messages", []))
            received = len((message["content"] or "").split())
            answer["usage"] = {
                "prompt_tokens": sent,
                "completion_tokens": received,
                "total_tokens": sent + received,
            }
        return answer

    def _embedded(self, body: dict[str, Any]) -> dict[str, Any]:
        behaviour = self.behaviour
        answer = embeddings_answer(body, behaviour.dimensions, packed=behaviour.encoding_base64)
        answer["model"] = behaviour.embedding_model
        if not behaviour.usage:
            del answer["usage"]
        return answer

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _put_behaviour(self, request: web.Request) -> web.Response:
        self.behaviour = Behaviour.model_validate_json(await request.read())
        return web.json_response(self.behaviour.model_dump())

    async def _post_script(self, request: web.Request) -> web.Response:
        self.script(*TypeAdapter(list[Step]).validate_json(await request.read()))
        return web.json_response({"steps": len(self._steps)})

    async def _get_requests(self, _: web.Request) -> web.Response:
        return web.json_response({"items": [item.model_dump() for item in self.requests]})

    async def _delete_requests(self, _: web.Request) -> web.Response:
        self.requests.clear()
        self.total = self.most_in_flight = 0
        return web.Response(status=204)

    async def _get_stats(self, _: web.Request) -> web.Response:
        return web.json_response({"total": self.total, "inFlight": self.in_flight, "mostInFlight": self.most_in_flight})


def _error(
    status: int, message: str, param: str, *, headers: dict[str, str] | None = None, error: dict[str, Any] | None = None
) -> web.Response:
    body = {"error": {"message": message, "type": "scripted", "param": param or None, "code": None, **(error or {})}}
    return web.json_response(body, status=status, headers=headers)


async def _cut(request: web.Request, *, within_body: bool) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
    if within_body:
        await response.prepare(request)
        await response.write(b'{"choices": [')
    if request.transport is not None:
        request.transport.abort()
    return response


@pytest.fixture
async def scripted_model() -> AsyncIterator[ModelServer]:
    """A server for one test, on a free port of 127.0.0.1."""
    server = ModelServer()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@pytest.fixture(scope="module", name="model")
async def module_model() -> AsyncIterator[ModelServer]:
    """A server for all tests of a module."""
    server = ModelServer()
    await server.start()
    yield server
    await server.stop()


async def _serve(host: str, port: int) -> None:
    server = ModelServer()
    await server.start(host, port)
    print(server.url, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(arguments.host, arguments.port))
