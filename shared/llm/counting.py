"""The metrics of single requests and of whole calls of the model."""

from shared.llm.usage import ModelUsage
from shared.observability import metrics


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
