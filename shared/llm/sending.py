"""Sends one request to the model's server: within a slot, a time limit, and the breaker's permission."""

import asyncio
import contextlib
import random
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
import openai

from shared.llm.breaker import BreakerOpen, ModelBreaker, Unavailability
from shared.llm.dialect import Dialect
from shared.llm.errors import ModelRefused, ModelTimeout, ModelUnavailable
from shared.llm.settings import ModelSettings
from shared.llm.streaming import Silence, StreamedAnswer, next_line
from shared.llm.usage import Spending, count_request, observe_request
from shared.observability.metrics import MODEL_IN_FLIGHT

_FIRST_BACKOFF_SECONDS = 0.25
_LONGEST_BACKOFF_SECONDS = 4.0
_RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504, 529})
# A time-out that the deadline cut to less than this part of the usual one says nothing about the model.
_TELLING_PART_OF_TIMEOUT = 0.5
_PROBE_SECONDS = 60.0
_CHAT = "/chat/completions"
# What OpenAI, llama.cpp, vLLM and Ollama say of a request that does not fit the model's context.
_TOO_LONG_CODES = ("context_length_exceeded", "exceed_context_size_error")
_TOO_LONG = re.compile(
    r"context (?:length|size|window)|maximum (?:context|model) length|(?:prompt|input|request) is too (?:long|large)"
    r"|exceeds? the (?:available |maximum )?(?:context|input)|too many tokens",
    re.IGNORECASE,
)
_LEFT_ALONE = "The model has been failing and is left alone for a while; try again later."
_OUT_OF_TIME = "The deadline leaves no time to ask the model."


class Clock:
    """Counts down to a deadline (an aware datetime) less a reserve of seconds, on the monotonic clock."""

    def __init__(self, deadline: datetime, reserve_seconds: float) -> None:
        left = (deadline - datetime.now(UTC)).total_seconds() - reserve_seconds
        self._end = time.monotonic() + left

    def left(self) -> float:
        """Seconds left; 0 or less when there are none."""
        return self._end - time.monotonic()


@dataclass
class Call:
    """What the requests of one call share."""

    operation: str
    clock: Clock
    spending: Spending
    retries_left: int
    timed_out: bool = False

    def out_of_time(self) -> ModelTimeout:
        return ModelTimeout(_OUT_OF_TIME, self.spending.usage())

    def unavailable(self, detail: str) -> ModelUnavailable:
        return ModelUnavailable(detail, self.spending.usage())


class _Retriable(Exception):
    def __init__(self, outcome: str, detail: str, *, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.detail = detail
        self.retry_after = retry_after


class _Failing(_Retriable, Unavailability):
    """Retriable, and a sign that the model is out."""


class _Rejected(Exception):
    def __init__(self, error: openai.APIStatusError) -> None:
        self.status = error.status_code
        self.code = str(error.code or "")
        self.text = f"{error.param or ''} {error.message}"


class Requests:
    """Sends requests through one `openai` client, within the bound on requests in flight and the breaker.

    A chat completion is streamed where the server can: then an attempt ends when the model falls silent, however long
    its answer takes. Where the server cannot, an attempt that took too long is followed by one that gets all the time
    that is left. While the breaker is half open, a small request of our own probes the model, and no caller waits.
    """

    def __init__(self, client: openai.AsyncOpenAI, settings: ModelSettings, breaker: ModelBreaker) -> None:
        self._client = client
        self._settings = settings
        self._breaker = breaker
        self._slots = Slots(settings.model_max_in_flight)
        self._dialect = Dialect()
        self._probe: asyncio.Task[None] | None = None
        breaker.on_open(self._slots.turn_away)

    async def stop(self) -> None:
        """Ends a probe that is under way."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait([self._probe])

    async def send(self, path: str, body: Callable[[Dialect], dict[str, Any]], call: Call) -> bytes:
        """The body of the server's 2xx answer. Raises ModelUnavailable, ModelTimeout or ModelRefused."""
        failures = 0
        while True:
            rendered = body(self._dialect)
            try:
                return await self._attempt(path, rendered, call)
            except BreakerOpen:
                count_request(call.operation, "breaker_open")
                raise call.unavailable(_LEFT_ALONE) from None
            except _Rejected as rejected:
                count_request(call.operation, "rejected")
                if rejected.status not in (400, 422) or not self._dialect.learn(rendered, rejected.text):
                    raise _explained(rejected, call) from None
            except _Retriable as failure:
                count_request(call.operation, failure.outcome)
                failures += 1
                await self._before_retry(failure, failures, call)

    async def _before_retry(self, failure: _Retriable, failures: int, call: Call) -> None:
        error = ModelTimeout if failure.outcome == "timeout" else ModelUnavailable
        if call.retries_left <= 0 or call.timed_out:
            raise error(failure.detail, call.spending.usage()) from None
        if failure.outcome == "timeout":
            # The next attempt gets all the time that is left, and is the last one.
            call.timed_out = True
            if call.clock.left() <= 0:
                raise error(failure.detail, call.spending.usage()) from None
            return
        wait = backoff_seconds(failures) if failure.retry_after is None else failure.retry_after
        if wait >= call.clock.left():
            raise error(f"{failure.detail} The deadline leaves no time to ask again.", call.spending.usage()) from None
        call.retries_left -= 1
        await asyncio.sleep(wait)

    async def _attempt(self, path: str, body: dict[str, Any], call: Call) -> bytes:
        if self._breaker.refuses():
            raise BreakerOpen
        if self._breaker.wants_probe():
            self._start_probe(path, body)
            raise BreakerOpen
        left = call.clock.left()
        if left <= 0:
            raise call.out_of_time()
        try:
            slot = self._slots.one(left)
            async with slot:
                return await self._guarded(path, body, call)
        except TimeoutError:
            raise call.out_of_time() from None

    async def _guarded(self, path: str, body: dict[str, Any], call: Call) -> bytes:
        left = call.clock.left()
        if left <= 0:
            raise call.out_of_time()
        usual = self._settings.model_attempt_timeout_seconds
        streamed = path == _CHAT and self._dialect.stream is not False
        # Whoever has run out of time once waits for as long as the deadline allows.
        allowed = left if call.timed_out else min(usual, left)
        with self._breaker.calling():
            call.spending.attempts += 1
            began = time.monotonic()
            try:
                if streamed:
                    return await self._stream(body, allowed, left)
                async with asyncio.timeout(allowed):
                    return await self._post(path, body)
            except (TimeoutError, Silence) as error:
                waited = time.monotonic() - began
                detail = f"The model did not answer within {waited:.1f} s."
                raise self._too_late(error, allowed, usual, call, detail) from None
            finally:
                observe_request(call.operation, time.monotonic() - began)

    def _too_late(self, error: Exception, allowed: float, usual: float, call: Call, detail: str) -> "_Retriable":
        """What a time-out says about the model: silence is a sign of an outage, and slowness is none.

        A server that does not stream cannot show that it is at work; there, only the second time-out is a sign.
        """
        telling = allowed >= usual * _TELLING_PART_OF_TIMEOUT
        silent = isinstance(error, Silence) and self._dialect.stream is True
        return (_Failing if telling and (silent or call.timed_out) else _Retriable)("timeout", detail)

    async def _stream(self, body: dict[str, Any], silence_seconds: float, left_seconds: float) -> bytes:
        """The answer to a chat request, read as it comes. Raises Silence, and TimeoutError at the deadline."""
        answer = StreamedAnswer()
        request = {**body, "stream": True, "stream_options": {"include_usage": True}}
        try:
            async with asyncio.timeout(left_seconds):
                return await self._read_stream(request, answer, silence_seconds)
        except TimeoutError:
            raise  # an OSError, and no fault of the connection
        except openai.APIStatusError as error:
            raise _of_status(error) from None
        except (openai.APIConnectionError, httpx2.HTTPError, OSError):
            raise _Failing("connection", "The connection to the model failed.") from None

    async def _read_stream(self, request: dict[str, Any], answer: StreamedAnswer, silence_seconds: float) -> bytes:
        creating = self._client.chat.completions.with_streaming_response.create(**request)
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(silence_seconds):
                    response = await stack.enter_async_context(creating)
                    if not response.headers.get("content-type", "").startswith("text/event-stream"):
                        content: bytes = await response.read()
                        self._dialect.stream = False
                        return content
            except TimeoutError:
                raise Silence from None
            self._dialect.stream = True
            lines = response.iter_lines()
            while (line := await next_line(lines, silence_seconds)) is not None:
                if answer.add(line):
                    break
        return answer.body()

    async def _post(self, path: str, body: dict[str, Any]) -> bytes:
        try:
            response = await self._client.post(path, body=body, cast_to=httpx2.Response)
        except openai.APIStatusError as error:
            raise _of_status(error) from None
        except (openai.APIConnectionError, httpx2.HTTPError, OSError):
            raise _Failing("connection", "The connection to the model failed.") from None
        return response.content

    def _start_probe(self, path: str, body: dict[str, Any]) -> None:
        """Asks the model for one token, or one embedding, in the background."""
        if path == _CHAT:
            tokens = self._dialect.tokens_field
            ping = {"model": body["model"], "messages": [{"role": "user", "content": "ping"}], tokens: 1}
        else:
            ping = {"model": body["model"], "input": ["ping"]}
        self._probe = asyncio.create_task(self._run_probe(path, ping), name="model probe")

    async def _run_probe(self, path: str, ping: dict[str, Any]) -> None:
        """The breaker closes or opens by what comes of it."""
        with contextlib.suppress(BreakerOpen, _Retriable, _Rejected), self._breaker.calling():
            try:
                async with asyncio.timeout(_PROBE_SECONDS):
                    await self._post(path, ping)
            except TimeoutError:
                raise _Failing("timeout", "The model did not answer the probe.") from None
            except _Rejected:
                pass  # It answers, if only to say that it does not take this request.


class Slots:
    """`size` slots, handed out first come, first served. Those who wait can all be turned away at once."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def one(self, wait_seconds: float) -> AsyncIterator[None]:
        """Holds one slot. TimeoutError when none came free in time, BreakerOpen when turned away while waiting."""
        if self._free > 0:
            self._free -= 1
        else:
            await self._wait(wait_seconds)
        MODEL_IN_FLIGHT.inc()
        try:
            yield
        finally:
            MODEL_IN_FLIGHT.dec()
            self._release()

    def turn_away(self) -> None:
        """Ends all waits with BreakerOpen."""
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(BreakerOpen())

    async def _wait(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            async with asyncio.timeout(seconds):
                await future
        except (TimeoutError, asyncio.CancelledError):
            if future.done() and not future.cancelled() and future.exception() is None:
                self._release()
            raise

    def _release(self) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                return
        self._free += 1


def backoff_seconds(failures: int) -> float:
    """A random wait that grows with the failures so far, so that many callers do not come back at the same moment."""
    longest = min(_LONGEST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2.0 ** (failures - 1))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """What the answer's `Retry-After-Ms` or `Retry-After` (seconds or an HTTP date) asks for; None without one."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        try:
            seconds = float(value) * unit
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        moment = parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, TypeError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _of_status(error: openai.APIStatusError) -> Exception:
    status = error.status_code
    if status not in _RETRIED_STATUSES or error.code == "insufficient_quota":
        return _Rejected(error)
    wait = retry_after_seconds(error.response.headers)
    if status == 429:
        return _Retriable(
            "rate_limited", "The model's server takes no more requests at the moment (HTTP 429).", retry_after=wait
        )
    return _Failing("server_fault", f"The model's server has a fault (HTTP {status}).", retry_after=wait)


def _explained(rejected: _Rejected, call: Call) -> Exception:
    status, code = rejected.status, rejected.code
    if code in ("content_filter", "content_policy_violation"):
        return ModelRefused("The model's server declined to answer this request.", call.spending.usage())
    if code == "insufficient_quota" or status == 402:
        return call.unavailable("The account at the model's server has used up its credit.")
    if status in (401, 403):
        return call.unavailable(f"The model's server refused the credentials (HTTP {status}): check OPENAI_API_KEY.")
    if status == 404:
        return call.unavailable(
            "The model's server does not know the model (HTTP 404): check OPENAI_MODEL, OPENAI_EMBEDDING_MODEL "
            "and OPENAI_BASE_URL."
        )
    if status == 413 or code in _TOO_LONG_CODES or _TOO_LONG.search(rejected.text):
        return call.unavailable("The request is too long for the model.")
    return call.unavailable(f"The model's server did not accept the request (HTTP {status}).")
