"""Usage of model calls: tokens, cost in integer nano-dollars, and their conversion to metrics and ComponentUsage."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from genai_prices import Usage, calc_price

from shared.contracts.problems import WarningCode
from shared.contracts.upgrade_tasks import ComponentUsage, UpgradeWarning
from shared.observability import metrics

# Vendors whose model names are unique to them, so that their prices also apply behind a proxy's address. Anybody can
# serve an open model, so on an unknown server its price is unknown.
_VENDORS_BY_MODEL_NAME = ("openai", "anthropic")
_OPEN_MODELS = ("gpt-oss",)
OFFLINE_MODEL_PREFIX = "offline-"
_TOKENS_OF_A_MESSAGE = 4
_BYTES_PER_TOKEN = 3


class ModelPrice(NamedTuple):
    """Price of a model in dollars per million input and output tokens. 0 is a valid price."""

    tokens_in: Decimal
    tokens_out: Decimal


@dataclass(frozen=True)
class ModelUsage:
    """Usage of one call over all its requests. Latency is in milliseconds and includes waits.

    `price_known` is False when some tokens had no known price; those cost 0 here. `attempts` counts requests sent.
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


@dataclass
class Spending:
    """Adds up the usage of one call's requests while the call runs.

    `prices` are the operator's, by the requested name or the one that the server reports. `base_url` None is OpenAI.

    Requests without an answer (an error status, a broken connection, a timeout) count as attempts without tokens,
    since nothing shows that the server charged for them.
    """

    model: str
    base_url: str | None
    prices: Mapping[str, ModelPrice] = field(default_factory=dict)
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
        """Counts an answered request. `body` is its JSON object, if any; the texts are for estimates."""
        body = body or {}
        set_price = self.prices.get(self.model)
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
        set_price = self.prices.get(self.model, set_price)
        cost = None
        if set_price is not None:
            # Dollars per million tokens are thousands of nano-dollars per token.
            cost = math.ceil((set_price.tokens_in * tokens_in + set_price.tokens_out * tokens_out) * 1_000)
        elif not self.offline:
            cost = price_nano_usd(self.model, tokens_in, tokens_out, cached_in=cached or 0, base_url=self.base_url)
        self._tokens_in += tokens_in
        self._tokens_out += tokens_out
        self._embeddings += embeddings
        self._cost += cost or 0
        self._price_known = self._price_known and (self.offline or cost is not None)

    @property
    def offline(self) -> bool:
        return self.model.startswith(OFFLINE_MODEL_PREFIX)

    def usage(self) -> ModelUsage:
        """The usage so far."""
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


def parse_model_prices(text: str) -> dict[str, ModelPrice]:
    """Prices by model name from `name=IN/OUT, name=BOTH`, in dollars per million tokens. Raises ValueError."""
    prices = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, equals, amounts = (part.strip() for part in entry.rpartition("="))
        first, _, second = amounts.partition("/")
        try:
            price = ModelPrice(Decimal(first), Decimal(second or first))
        except InvalidOperation:
            raise ValueError(f"`{entry}` is not name=IN/OUT in dollars per million tokens") from None
        if not equals or not name or not all(amount.is_finite() and amount >= 0 for amount in price):
            raise ValueError(f"`{entry}` is not name=IN/OUT in dollars per million tokens")
        prices[name] = price
    return prices


def price_nano_usd(
    model: str, tokens_in: int, tokens_out: int = 0, *, cached_in: int = 0, base_url: str | None = None
) -> int | None:
    """Cost of a call, rounded up to a whole nano-dollar; None when the price is not known.

    `cached_in` of the `tokens_in` were read from the vendor's cache. `base_url` None is OpenAI itself.
    """
    usage = Usage(input_tokens=tokens_in, output_tokens=tokens_out, cache_read_tokens=min(cached_in, tokens_in))
    if base_url is None:
        return _price(usage, model, provider_id="openai")
    by_address = _price(usage, model, provider_api_url=base_url)
    if by_address is not None or model.startswith(_OPEN_MODELS):
        return by_address
    prices = (_price(usage, model, provider_id=vendor) for vendor in _VENDORS_BY_MODEL_NAME)
    return next((price for price in prices if price is not None), None)


def estimate_tokens(texts: Iterable[str]) -> int:
    """Estimates the tokens of texts if the server reports none: a third of the UTF-8 bytes, plus 4 per text.

    English has about 4 bytes per token and most scripts at most 3, so the estimate tends to be high.
    """
    return sum(
        _TOKENS_OF_A_MESSAGE + math.ceil(len(text.encode("utf-8", "replace")) / _BYTES_PER_TOKEN) for text in texts
    )


def component_usage(component: str, operation: str, usage: ModelUsage) -> ComponentUsage:
    """The usage of one model call, all attempts included, as an entry of an upgrade's usage."""
    return ComponentUsage(
        component=component,
        operation=operation,
        model=usage.model,
        tokens_in=usage.tokens_in,
        tokens_out=usage.tokens_out,
        embeddings=usage.embeddings,
        cost_nano_usd=usage.cost_nano_usd,
        latency_ms=usage.latency_ms,
    )


def usage_warnings(usage: ModelUsage) -> list[UpgradeWarning]:
    """Warnings for the client about the model: offline, or of unknown price."""
    warnings = []
    if usage.offline:
        detail = "Made by the offline model, by fixed rules, without a language model."
        warnings.append(UpgradeWarning(code=WarningCode.OFFLINE_MODEL, detail=detail))
    if not usage.price_known:
        detail = f"No price is known for the model {usage.model}; its cost is counted as 0."
        warnings.append(UpgradeWarning(code=WarningCode.PRICE_UNKNOWN, detail=detail))
    return warnings


def count_request(operation: str, outcome: str) -> None:
    """Counts one finished request: `ok`, `invalid` and `refused` were answered.

    `timeout`, `connection`, `rate_limited`, `server_fault` and `rejected` were not; `breaker_open` was not sent.
    """
    metrics.MODEL_CALLS.labels(operation=operation, outcome=outcome).inc()


def observe_request(operation: str, seconds: float) -> None:
    """Records how long one request was in flight."""
    metrics.MODEL_LATENCY.labels(operation=operation).observe(seconds)


def count_usage(operation: str, usage: ModelUsage) -> None:
    """Counts the usage of one call in the metrics."""
    metrics.MODEL_TOKENS.labels(operation=operation, direction="in").inc(usage.tokens_in)
    metrics.MODEL_TOKENS.labels(operation=operation, direction="out").inc(usage.tokens_out)
    metrics.MODEL_COST.labels(operation=operation).inc(usage.cost_nano_usd)


def _price(
    usage: Usage, model: str, *, provider_id: str | None = None, provider_api_url: str | None = None
) -> int | None:
    try:
        if provider_id is not None:
            total = calc_price(usage, model, provider_id=provider_id).total_price
        else:
            total = calc_price(usage, model, provider_api_url=provider_api_url).total_price
    except (LookupError, ValueError):
        return None
    return math.ceil(total * 1_000_000_000)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
