"""Registry of all metrics. Metrics are defined only here; labels must not hold tenant, user or request ids."""

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
_FAST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

UPGRADE_LATENCY = Histogram(
    "orchestrator_upgrade_latency_seconds", "Acceptance to end of an upgrade.", ["status"], buckets=_SECONDS
)
UPGRADE_ERRORS = Counter("orchestrator_upgrade_errors_total", "Upgrades that did not end as upgraded.", ["error_type"])

STAGE_LATENCY = Histogram(
    "stage_latency_seconds", "Time a stage spent on one message, retries included.", ["topic"], buckets=_SECONDS
)
IN_FLIGHT = Gauge("stage_in_flight", "Messages being worked on.", ["topic"])
CONSUMER_LAG = Gauge("consumer_lag_records", "Records between the position and the end.", ["topic", "partition"])
RETRIES = Counter("stage_retries_total", "Further attempts at a message.", ["topic", "error_type"])
DEAD_LETTERS = Counter("dead_letters_total", "Records written to a dead-letter topic.", ["topic", "error_type"])
FACTS_REPUBLISHED = Counter(
    "facts_republished_total", "Facts published again because they may not have arrived.", ["topic"]
)

CACHE_REQUESTS = Counter("cache_requests_total", "Look-ups in a cache; outcome is hit or miss.", ["cache", "outcome"])

UPGRADE_STEPS = Counter(
    "prompt_upgrader_fallback_steps_total",
    "Ends by the step of the ladder: model, fallback, cached or original.",
    ["step"],
)
REWRITE_CHECKS_FAILED = Counter(
    "prompt_upgrader_rewrite_checks_failed_total",
    "Answers of the model that failed a check; attempt is first or repair.",
    ["check", "attempt"],
)

BREAKER_STATE = Gauge("model_breaker_state", "0 closed, 1 half open, 2 open.", ["breaker"])
MODEL_CALLS = Counter("model_calls_total", "Calls to the model, each attempt.", ["operation", "outcome"])
MODEL_LATENCY = Histogram("model_call_latency_seconds", "One attempt at the model.", ["operation"], buckets=_SECONDS)
MODEL_TOKENS = Counter("model_tokens_total", "Tokens; direction is in or out.", ["operation", "direction"])
MODEL_COST = Counter("model_cost_nano_usd_total", "Spent on the model, in nano-dollars.", ["operation"])
MODEL_IN_FLIGHT = Gauge("model_calls_in_flight", "Calls to the model under way.")

HTTP_REQUESTS = Counter("http_requests_total", "Answered requests.", ["route", "method", "status"])
HTTP_LATENCY = Histogram(
    "http_request_latency_seconds", "Request to end of answer.", ["route", "method"], buckets=_FAST_SECONDS
)

ADMISSIONS = Counter(
    "admissions_total", "Decisions; outcome is admitted, replay, rate_limited, quota_exceeded or cold.", ["outcome"]
)

USAGE_EVENTS = Counter(
    "usage_events_total", "Events read for the ledger; outcome is counted or duplicate.", ["outcome"]
)
USAGE_BATCH_LATENCY = Histogram(
    "usage_batch_latency_seconds", "Storing, counting and marking one batch of events.", buckets=_FAST_SECONDS
)
RECONCILE_RUNS = Counter(
    "usage_reconcile_runs_total", "Scheduled reconciliations; outcome is clean, different or failed.", ["outcome"]
)
RECONCILE_DIFFERENCES = Gauge("usage_reconcile_differences", "Differences that the last reconciliation found.")
RECONCILE_UNCOUNTED = Gauge("usage_reconcile_uncounted_events", "Stored but uncounted events that it found.")
RECONCILE_PENDING = Gauge("usage_reconcile_pending_events", "Events that it found in topics but not in the ledger.")
RECONCILED_AT = Gauge("usage_reconciled_timestamp_seconds", "Time of the last reconciliation, in seconds since 1970.")
USAGE_EVENTS_REMOVED = Counter("usage_events_removed_total", "Events removed from the ledger because of their age.")
USAGE_BATCHES_RESUMED = Counter("usage_batches_resumed_total", "Batches finished after the process that began them.")
