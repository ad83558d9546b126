"""Sends single requests to the model's server, with a limit on requests in flight, retries and the circuit breaker.

`Requests.send` retries transient faults until the call's deadline or number of attempts is reached, and raises every
other fault as a ModelError.
"""

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
# Timeouts that the deadline cut to less than this share of the usual limit do not count against the model.
_COUNTED_TIMEOUT_SHARE = 0.5
_PROBE_SECONDS = 60.0
_CHAT = "/chat/completions"
# Error codes and texts of OpenAI, llama.cpp, vLLM and Ollama for a request that exceeds the model's context.
_TOO_LONG_CODES = ("context_length_exceeded", "exceed_context_size_error")
_TOO_LONG = re.compile(
    r"context (?:length|size|window)|maximum (?:context|model) length|(?:prompt|input|request) is too (?:long|large)"
    r"|exceeds? the (?:available |maximum )?(?:context|input)|too many tokens",
    re.IGNORECASE,
)
_BREAKER_OPEN = "The model has been failing and is left alone for a while; try again later."
_OUT_OF_TIME = "The deadline leaves no time to ask the model."


class Clock:
    """Counts down to `reserve_seconds` before `deadline` (an aware datetime), on the monotonic clock."""

    def __init__(self, deadline: datetime, reserve_seconds: float) -> None:
        left = (deadline - datetime.now(UTC)).total_seconds() - reserve_seconds
        self._end = time.monotonic() + left

    def left(self) -> float:
        """Seconds left; zero or negative when the time is up."""
        return self._end - time.monotonic()


@dataclass
class Call:
    """State shared by all requests of one call. `timed_out` is set after the first timeout of an attempt."""

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
    """A transient fault. `outcome` is its metric label; `retry_after` is in seconds."""

    def __init__(self, outcome: str, detail: str, *, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.detail = detail
        self.retry_after = retry_after


class _ServerFailing(_Retriable, Unavailability):
    """A transient fault that counts against the model in the breaker."""


class _Rejected(Exception):
    """A status that a retry would not change."""

    def __init__(self, error: openai.APIStatusError) -> None:
        self.status = error.status_code
        self.code = str(error.code or "")
        self.text = f"{error.param or ''} {error.message}"


class Requests:
    """Sends requests through one `openai` client. All calls of a process share its slots, breaker and dialect.

    Chat completions are streamed if the server supports it: an attempt then times out only when no data arrives for
    `model_attempt_timeout_seconds`, and slow answers are waited for until the deadline. Without streaming, an attempt
    that timed out is followed by one last attempt with all the remaining time. While the breaker is half open, a small
    background request probes the model, and all calls are refused until it ends.
    """

    def __init__(self, client: openai.AsyncOpenAI, settings: ModelSettings, breaker: ModelBreaker) -> None:
        self._client = client
        self._settings = settings
        self._breaker = breaker
        self._slots = Slots(settings.model_max_in_flight)
        self._dialect = Dialect()
        self._probe: asyncio.Task[None] | None = None
        breaker.on_open(self._slots.reject_waiting)

    async def stop(self) -> None:
        """Cancels a running probe."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait([self._probe])

    async def send(self, path: str, body: Callable[[Dialect], dict[str, Any]], call: Call) -> bytes:
        """The body of the server's 2xx response to `body`, which is rendered again when the dialect changes.

        Raises ModelUnavailable, ModelTimeout or ModelRefused.
        """
        failures = 0
        while True:
            rendered = body(self._dialect)
            try:
                return await self._attempt(path, rendered, call)
            except BreakerOpen:
                count_request(call.operation, "breaker_open")
                raise call.unavailable(_BREAKER_OPEN) from None
            except _Rejected as rejected:
                count_request(call.operation, "rejected")
                if rejected.status not in (400, 422) or not self._dialect.learn(rendered, rejected.text):
                    raise _model_error(rejected, call) from None
            except _Retriable as failure:
                count_request(call.operation, failure.outcome)
                failures += 1
                await self._wait_before_retry(failure, failures, call)

    async def _wait_before_retry(self, failure: _Retriable, failures: int, call: Call) -> None:
        error = ModelTimeout if failure.outcome == "timeout" else ModelUnavailable
        if call.retries_left <= 0 or call.timed_out:
            raise error(failure.detail, call.spending.usage()) from None
        if failure.outcome == "timeout":
            # The next attempt gets all the remaining time, and is the last one.
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
                return await self._attempt_in_slot(path, body, call)
        except TimeoutError:
            raise call.out_of_time() from None

    async def _attempt_in_slot(self, path: str, body: dict[str, Any], call: Call) -> bytes:
        left = call.clock.left()
        if left <= 0:
            raise call.out_of_time()
        usual = self._settings.model_attempt_timeout_seconds
        # After a timeout, the last attempt may take until the deadline.
        allowed = left if call.timed_out else min(usual, left)
        with self._breaker.calling():
            call.spending.attempts += 1
            began = time.monotonic()
            try:
                if "stream" in body:
                    return await self._stream(body, allowed, left)
                async with asyncio.timeout(allowed):
                    return await self._post(path, body)
            except (TimeoutError, Silence) as error:
                waited = time.monotonic() - began
                detail = f"The model did not answer within {waited:.1f} s."
                raise self._timeout_fault(error, allowed, usual, call, detail) from None
            finally:
                observe_request(call.operation, time.monotonic() - began)

    def _timeout_fault(self, error: Exception, allowed: float, usual: float, call: Call, detail: str) -> _Retriable:
        """The fault of a timeout: whether it counts against the model in the breaker.

        Silence in a stream counts and slowness does not. Without streaming the two look alike, so only the second
        timeout of a call counts.
        """
        counts = allowed >= usual * _COUNTED_TIMEOUT_SHARE
        silent = isinstance(error, Silence) and self._dialect.stream is True
        return (_ServerFailing if counts and (silent or call.timed_out) else _Retriable)("timeout", detail)

    async def _stream(self, body: dict[str, Any], silence_seconds: float, left_seconds: float) -> bytes:
        """The answer to a chat request, read as a stream. Raises Silence, or TimeoutError at the deadline."""
        answer = StreamedAnswer()
        try:
            async with asyncio.timeout(left_seconds):
                return await self._read_stream(body, answer, silence_seconds)
        except TimeoutError:
            raise  # TimeoutError is an OSError, but no connection fault
        except openai.APIStatusError as error:
            raise _fault_of_status(error) from None
        except (openai.APIConnectionError, httpx2.HTTPError, OSError):
            raise _ServerFailing("connection", "The connection to the model failed.") from None

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
            raise _fault_of_status(error) from None
        except (openai.APIConnectionError, httpx2.HTTPError, OSError):
            raise _ServerFailing("connection", "The connection to the model failed.") from None
        return response.content

    def _start_probe(self, path: str, body: dict[str, Any]) -> None:
        """Requests one token, or one embedding, in the background."""
        if path == _CHAT:
            tokens = self._dialect.tokens_field
            ping = {"model": body["model"], "messages": [{"role": "user", "content": "ping"}], tokens: 1}
        else:
            ping = {"model": body["model"], "input": ["ping"]}
        self._probe = asyncio.create_task(self._run_probe(path, ping), name="model probe")

    async def _run_probe(self, path: str, ping: dict[str, Any]) -> None:
        """Sends the probe; its outcome closes the breaker or opens it again."""
        with contextlib.suppress(BreakerOpen, _Retriable, _Rejected), self._breaker.calling():
            try:
                async with asyncio.timeout(_PROBE_SECONDS):
                    await self._post(path, ping)
            except TimeoutError:
                raise _ServerFailing("timeout", "The model did not answer the probe.") from None
            except _Rejected:
                pass  # The server is up, even if it rejects this request.


class Slots:
    """`size` slots, assigned in the order of requests. All waiting requests can be rejected at once."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def one(self, wait_seconds: float) -> AsyncIterator[None]:
        """Holds one slot. Raises TimeoutError after `wait_seconds` without one, BreakerOpen when rejected."""
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

    def reject_waiting(self) -> None:
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
            # The slot may have been assigned at the same moment; it must not be lost.
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
    """Seconds to wait after that many failures: exponential, with jitter so that callers do not retry in step."""
    longest = min(_LONGEST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2.0 ** (failures - 1))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """The wait in `Retry-After-Ms` or `Retry-After` (seconds or an HTTP date), or None without a valid one."""
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


def _fault_of_status(error: openai.APIStatusError) -> Exception:
    status = error.status_code
    if status not in _RETRIED_STATUSES or error.code == "insufficient_quota":
        return _Rejected(error)
    wait = retry_after_seconds(error.response.headers)
    if status == 429:
        return _Retriable(
            "rate_limited", "The model's server takes no more requests at the moment (HTTP 429).", retry_after=wait
        )
    return _ServerFailing("server_fault", f"The model's server has a fault (HTTP {status}).", retry_after=wait)


def _model_error(rejected: _Rejected, call: Call) -> Exception:
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
