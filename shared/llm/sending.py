"""Sending one request to the model's server until it is answered, its attempts are spent or its deadline is near."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx2
import openai

from shared.llm.breaker import BreakerOpen, ModelBreaker, Unavailability
from shared.llm.counting import count_request, observe_request
from shared.llm.dialect import Dialect
from shared.llm.errors import ModelRefused, ModelTimeout, ModelUnavailable
from shared.llm.settings import ModelSettings
from shared.llm.slots import Slots
from shared.llm.usage import Spending
from shared.llm.waits import Clock, backoff_seconds, retry_after_seconds

_RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504, 529})
# A time-out that the deadline cut to less than this part of the usual one says nothing about the model.
_TELLING_PART_OF_TIMEOUT = 0.5

_LEFT_ALONE = "The model has been failing and is left alone for a while; try again later."
_OUT_OF_TIME = "The deadline leaves no time to ask the model."


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


@dataclass
class Call:
    """What the requests of one call share."""

    operation: str
    clock: Clock
    spending: Spending
    retries_left: int

    def out_of_time(self) -> ModelTimeout:
        return ModelTimeout(_OUT_OF_TIME, self.spending.usage())

    def unavailable(self, detail: str) -> ModelUnavailable:
        return ModelUnavailable(detail, self.spending.usage())


class Requests:
    """Sends requests through one `openai` client, within the bound on requests in flight and the breaker."""

    def __init__(self, client: openai.AsyncOpenAI, settings: ModelSettings, breaker: ModelBreaker) -> None:
        self._client = client
        self._settings = settings
        self._breaker = breaker
        self._slots = Slots(settings.model_max_in_flight)
        self._dialect = Dialect()
        breaker.on_open(self._slots.turn_away)

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
        if call.retries_left <= 0:
            raise error(failure.detail, call.spending.usage()) from None
        wait = backoff_seconds(failures) if failure.retry_after is None else failure.retry_after
        if wait >= call.clock.left():
            raise error(f"{failure.detail} The deadline leaves no time to ask again.", call.spending.usage()) from None
        call.retries_left -= 1
        await asyncio.sleep(wait)

    async def _attempt(self, path: str, body: dict[str, Any], call: Call) -> bytes:
        if self._breaker.refuses():
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
        usual = self._settings.model_attempt_timeout_seconds
        allowed = min(usual, call.clock.left())
        if allowed <= 0:
            raise call.out_of_time()
        with self._breaker.calling():
            call.spending.attempts += 1
            began = time.monotonic()
            try:
                async with asyncio.timeout(allowed):
                    return await self._post(path, body)
            except TimeoutError:
                failure = _Failing if allowed >= usual * _TELLING_PART_OF_TIMEOUT else _Retriable
                raise failure("timeout", f"The model did not answer within {allowed:.1f} s.") from None
            finally:
                observe_request(call.operation, time.monotonic() - began)

    async def _post(self, path: str, body: dict[str, Any]) -> bytes:
        try:
            response = await self._client.post(path, body=body, cast_to=httpx2.Response)
        except openai.APIStatusError as error:
            raise _of_status(error) from None
        except (openai.APIConnectionError, httpx2.HTTPError, OSError):
            raise _Failing("connection", "The connection to the model failed.") from None
        return response.content


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
    if status == 413 or code == "context_length_exceeded":
        return call.unavailable("The request is too long for the model.")
    return call.unavailable(f"The model's server did not accept the request (HTTP {status}).")
