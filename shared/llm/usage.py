"""What calls of the model used: counted by the model's server, estimated only where it does not say."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from shared.llm.prices import price_nano_usd

OFFLINE_MODEL_PREFIX = "offline-"

_TOKENS_OF_A_MESSAGE = 4
_BYTES_PER_TOKEN = 3


@dataclass(frozen=True)
class ModelUsage:
    """What one call used over all its requests. Cost in nano-dollars, latency in milliseconds, waits included.

    `price_known` is False when tokens were used at a price that nobody knows; they cost 0 here.
    `attempts` are requests that were sent.
    """

    model: str
    tokens_in: int = 0
    tokens_out: int = 0
    embeddings: int = 0
    cost_nano_usd: int = 0
    price_known: bool = True
    latency_ms: int = 0
    offline: bool = False
    attempts: int = 0


def estimate_tokens(texts: Iterable[str]) -> int:
    """Tokens of texts for a server that does not count: a third of their UTF-8 bytes, rounded up, and 4 a text.

    English has about 4 bytes a token and most scripts at most 3, so this is rather too much than too little.
    """
    return sum(
        _TOKENS_OF_A_MESSAGE + math.ceil(len(text.encode("utf-8", "replace")) / _BYTES_PER_TOKEN) for text in texts
    )


@dataclass
class Spending:
    """Adds up what the requests of one call use, while it runs.

    A request without an answer (an error status, a cut connection, a time-out) counts as an attempt and no tokens:
    nothing says that it was charged.
    """

    model: str
    base_url: str | None
    attempts: int = 0
    _tokens_in: int = 0
    _tokens_out: int = 0
    _embeddings: int = 0
    _cost: int = 0
    _price_known: bool = True
    _started: float = field(default_factory=time.monotonic)

    def add_answer(
        self, body: dict[str, Any] | None, *, sent: Iterable[str], received: str = "", embeddings: int = 0
    ) -> None:
        """Counts an answered request. `body` is its JSON or None when it was none; texts are for the estimate."""
        body = body or {}
        if isinstance(body.get("model"), str) and body["model"]:
            self.model = body["model"]
        reported = body.get("usage")
        reported = reported if isinstance(reported, dict) else {}
        tokens_in = _count(reported.get("prompt_tokens"))
        tokens_out = _count(reported.get("completion_tokens"))
        if tokens_in is None:
            tokens_in = estimate_tokens(sent)
        if tokens_out is None:
            tokens_out = estimate_tokens([received]) if received else 0
        details = reported.get("prompt_tokens_details")
        cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
        cost = (
            None
            if self.offline
            else price_nano_usd(self.model, tokens_in, tokens_out, cached_in=cached or 0, base_url=self.base_url)
        )
        self._tokens_in += tokens_in
        self._tokens_out += tokens_out
        self._embeddings += embeddings
        self._cost += cost or 0
        self._price_known = self._price_known and (self.offline or cost is not None)

    @property
    def offline(self) -> bool:
        return self.model.startswith(OFFLINE_MODEL_PREFIX)

    def usage(self) -> ModelUsage:
        """What was used until now."""
        return ModelUsage(
            model=self.model,
            tokens_in=self._tokens_in,
            tokens_out=self._tokens_out,
            embeddings=self._embeddings,
            cost_nano_usd=self._cost,
            price_known=self._price_known,
            latency_ms=round((time.monotonic() - self._started) * 1000),
            offline=self.offline,
            attempts=self.attempts,
        )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
