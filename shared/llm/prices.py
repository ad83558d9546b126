"""Prices of model calls in integer nano-dollars, from the price table that `genai-prices` ships. No network."""

import math

from genai_prices import Usage, calc_price

# A proxy or a gateway has an address of its own; these vendors' model names are theirs alone, so their price holds
# there too. Names of open models are everybody's: on an unknown server they have no known price.
_VENDORS_BY_MODEL_NAME = ("openai", "anthropic")
_OPEN_MODELS = ("gpt-oss",)


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
