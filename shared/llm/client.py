"""Client for model calls: structured answers and embeddings from an OpenAI-compatible server."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

import httpx2
import openai
from pydantic import BaseModel

from shared.llm import completions
from shared.llm.breaker import ModelBreaker
from shared.llm.completions import MayRepair, always
from shared.llm.dialect import ChatMessage, ChatRequest
from shared.llm.measuring import Outcome, measured
from shared.llm.sending import Call, Clock, Requests
from shared.llm.settings import ModelSettings
from shared.llm.usage import ModelUsage, Spending, parse_model_prices

__all__ = ["ChatMessage", "Completion", "Embedded", "ModelClient", "ModelUsage"]

T = TypeVar("T", bound=BaseModel)

_VENDOR_URL = "https://api.openai.com/v1"
_LONGEST_REQUEST_SECONDS = 3600.0
_KEEPALIVE_SECONDS = 5.0


@dataclass(frozen=True)
class Completion(Generic[T]):
    """A model's answer, parsed into the requested class. `repaired`: the first answer was unusable."""

    value: T
    usage: ModelUsage
    repaired: bool = False


@dataclass(frozen=True)
class Embedded:
    """One vector per text, in the order of the texts."""

    vectors: list[list[float]]
    usage: ModelUsage


class ModelClient:
    """Calls the model; one per process and model. A Component: `start` before the first call, `stop` after the last.

    Every call ends before its deadline less a reserve, with an answer or a ModelError: ModelUnavailable (at once while
    the breaker is open), ModelTimeout, ModelRefused or ModelAnswerInvalid.
    """

    def __init__(self, settings: ModelSettings, *, name: str = "model") -> None:
        self._settings = settings
        self._prices = parse_model_prices(settings.model_prices)
        self.breaker = ModelBreaker(
            name, failures=settings.model_breaker_failures, open_seconds=settings.model_breaker_open_seconds
        )
        self._client: openai.AsyncOpenAI | None = None
        self._requests: Requests | None = None
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self) -> None:
        """Opens the client; makes no call."""
        # At DEBUG these log whole requests, which contain what users wrote.
        for name in ("openai", "httpx2", "httpcore2"):
            logging.getLogger(name).setLevel(logging.WARNING)
        settings = self._settings
        limits = httpx2.Limits(
            max_connections=settings.model_max_in_flight,
            max_keepalive_connections=settings.model_max_in_flight,
            keepalive_expiry=_KEEPALIVE_SECONDS,
        )
        key = settings.openai_api_key
        self._client = openai.AsyncOpenAI(
            api_key=key.get_secret_value() if key else "none",
            base_url=settings.openai_base_url or _VENDOR_URL,
            max_retries=0,
            # `Requests` sets the effective limit; this one only has to be longer.
            timeout=_LONGEST_REQUEST_SECONDS,
            http_client=openai.DefaultAioHttpClient(limits=limits),
        )
        self._requests = Requests(self._client, settings, self.breaker)

    async def stop(self, grace_seconds: float) -> None:
        """Waits up to `grace_seconds` for calls in flight, then closes the connections."""
        try:
            async with asyncio.timeout(grace_seconds):
                await self._idle.wait()
        except TimeoutError:
            pass
        if self._requests is not None:
            await self._requests.stop()
        if self._client is not None:
            await self._client.close()
        self._client = self._requests = None

    async def complete(
        self,
        *,
        operation: str,
        messages: Sequence[ChatMessage],
        output: type[T],
        max_tokens: int,
        temperature: float,
        deadline: datetime,
        may_repair: MayRepair = always,
    ) -> Completion[T]:
        """The model's answer as an `output`. An unusable one is asked for once more, with a hint, if `may_repair`.

        `operation` names the call in metrics and traces. Raises a ModelError, see the class.
        """
        request = ChatRequest(self._settings.openai_model, messages, output, max_tokens, temperature)
        with self._call(operation, request.model, deadline) as (requests, call, outcome):
            value = await completions.complete(requests, request, output, call, outcome, may_repair)
            return Completion(value, call.spending.usage(), outcome.repaired)

    async def embed(self, texts: Sequence[str], *, operation: str, deadline: datetime) -> Embedded:
        """One vector per text; makes no request without texts. Raises a ModelError, see the class."""
        model = self._settings.openai_embedding_model
        if not texts:
            return Embedded([], Spending(model, self._settings.openai_base_url).usage())
        with self._call(operation, model, deadline) as (requests, call, outcome):
            vectors = await completions.embed(requests, model, texts, call, outcome)
            return Embedded(vectors, call.spending.usage())

    @contextmanager
    def _call(self, operation: str, model: str, deadline: datetime) -> Iterator[tuple[Requests, Call, Outcome]]:
        if self._requests is None:
            raise RuntimeError("the model client is not started")
        call = Call(
            operation=operation,
            clock=Clock(deadline, self._settings.model_deadline_reserve_seconds),
            spending=Spending(model, self._settings.openai_base_url, self._prices),
            retries_left=self._settings.model_attempts - 1,
        )
        self._calls += 1
        self._idle.clear()
        try:
            with measured(call) as outcome:
                yield self._requests, call, outcome
        finally:
            self._calls -= 1
            if self._calls == 0:
                self._idle.set()
