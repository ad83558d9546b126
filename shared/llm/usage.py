"""What model calls use: tokens, prices in nano-dollars, metrics, and the usage reported with an upgrade."""

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

# A proxy or a gateway has an address of its own; these vendors' model names are theirs alone, so their price holds
# there too. Names of open models are everybody's: on an unknown server they have no known price.
_VENDORS_BY_MODEL_NAME = ("openai", "anthropic")
_OPEN_MODELS = ("gpt-oss",)
OFFLINE_MODEL_PREFIX = "offline-"
_TOKENS_OF_A_MESSAGE = 4
_BYTES_PER_TOKEN = 3


class ModelPrice(NamedTuple):
    """What a model costs, in dollars per million tokens in and out. 0 is a price."""

    tokens_in: Decimal
    tokens_out: Decimal


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


@dataclass
class Spending:
    """Adds up what the requests of one call use, while it runs.

    `prices` are those that the operator has set, by the name that is asked for or the one that the server reports.

    A request without an answer (an error status, a cut connection, a time-out) counts as an attempt and no tokens:
    nothing says that it was charged.
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
        """Counts an answered request. `body` is its JSON or None when it was none; texts are for the estimate."""
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
    """What a call costs, rounded up to a whole nano-dollar; None when the price is not known.

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
    """Tokens of texts for a server that does not count: a third of their UTF-8 bytes, rounded up, and 4 a text.

    English has about 4 bytes a token and most scripts at most 3, so this is rather too much than too little.
    """
    return sum(
        _TOKENS_OF_A_MESSAGE + math.ceil(len(text.encode("utf-8", "replace")) / _BYTES_PER_TOKEN) for text in texts
    )


def component_usage(component: str, operation: str, usage: ModelUsage) -> ComponentUsage:
    """One line of an upgrade's usage from one model call with all its attempts."""
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
    """What the client should know of the model that was used."""
    warnings = []
    if usage.offline:
        detail = "Made by the offline model, by fixed rules, without a language model."
        warnings.append(UpgradeWarning(code=WarningCode.OFFLINE_MODEL, detail=detail))
    if not usage.price_known:
        detail = f"No price is known for the model {usage.model}; its cost is counted as 0."
        warnings.append(UpgradeWarning(code=WarningCode.PRICE_UNKNOWN, detail=detail))
    return warnings


def count_request(operation: str, outcome: str) -> None:
    """One request that came to its end: `ok`, `invalid` and `refused` were answered.

    `timeout`, `connection`, `rate_limited`, `server_fault` and `rejected` were not, `breaker_open` was not even sent.
    """
    metrics.MODEL_CALLS.labels(operation=operation, outcome=outcome).inc()


def observe_request(operation: str, seconds: float) -> None:
    """How long one request was in flight."""
    metrics.MODEL_LATENCY.labels(operation=operation).observe(seconds)


def count_usage(operation: str, usage: ModelUsage) -> None:
    """What one call used over all its requests."""
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
