"""Consumes usage and completion events from Kafka in batches, and runs the periodic jobs of the ledger."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from time import perf_counter

from services.usage.counting.count_batch import CountBatch, CountingInterrupted
from services.usage.counting.ledger_event import LedgerEvent, of_completed, of_usage
from services.usage.counting.retention import Retention
from shared.contracts.contract import now_utc
from shared.contracts.upgrade_results import UpgradeCompleted
from shared.contracts.usage import UsageRecorded
from shared.messaging.cloudevents import Envelope
from shared.messaging.errors import Transient, Unprocessable
from shared.observability.logs import get_logger
from shared.observability.metrics import USAGE_BATCH_LATENCY, USAGE_BATCHES_RESUMED, USAGE_EVENTS, USAGE_EVENTS_REMOVED
from shared.storage.documents import StorageUnavailable

_MAX_ID_LENGTH = 200
_MAX_AMOUNT = 10**15
_SMALL_BATCH = 100
_PAUSE_AFTER_SMALL_BATCH_SECONDS = 0.2

_log = get_logger("usage")


def ledger_handler(
    counting: CountBatch, oldest_accepted: Callable[[datetime], datetime]
) -> Callable[[Sequence[Envelope]], Awaitable[None]]:
    """A handler that stores a batch of envelopes, which is then counted. It raises Transient for a batch to be retried.

    `oldest_accepted` returns, for the present moment, the time before which events are refused.
    """

    async def handle(envelopes: Sequence[Envelope]) -> None:
        began = perf_counter()
        oldest = oldest_accepted(now_utc())
        events = [to_ledger_event(envelope, oldest) for envelope in envelopes]
        try:
            batch = await counting.count_in_background(events)
        except (StorageUnavailable, CountingInterrupted) as error:
            raise Transient(f"{type(error).__name__}: {error}") from error
        batch.done.add_done_callback(lambda _: USAGE_BATCH_LATENCY.observe(perf_counter() - began))
        USAGE_EVENTS.labels("counted").inc(batch.new)
        USAGE_EVENTS.labels("duplicate").inc(len(events) - batch.new)
        if len(events) < _SMALL_BATCH:
            # A batch costs about the same whatever its size: events that arrive meanwhile share the next one.
            await asyncio.sleep(_PAUSE_AFTER_SMALL_BATCH_SECONDS)

    return handle


def to_ledger_event(envelope: Envelope, oldest: datetime) -> LedgerEvent:
    """Converts an event to its ledger form. Raises Unprocessable when it is invalid or occurred before `oldest`."""
    if not 0 < len(envelope.event_id) <= _MAX_ID_LENGTH:
        raise Unprocessable("an event id has 1 to 200 characters")
    if isinstance(envelope.data, UsageRecorded):
        event = of_usage(envelope.event_id, envelope.data)
    elif isinstance(envelope.data, UpgradeCompleted):
        event = of_completed(envelope.event_id, envelope.data)
    else:
        raise Unprocessable(f"the ledger does not accept {envelope.type}")
    if envelope.data.occurred_at.astimezone(UTC) < oldest:
        raise Unprocessable("the event occurred before the retention of the ledger and may have been counted already")
    if max(event.tokens_in, event.tokens_out, event.embeddings, event.cost_nano_usd, event.latency_ms) > _MAX_AMOUNT:
        raise Unprocessable("an amount is above 10^15")
    return event


def log_interrupted_batch(number: int, error: Exception) -> None:
    """Logs a stored batch that this process could not count. The resume job counts it after its lease has expired."""
    _log.warning("batch left to resume", batch=number, reason=f"{type(error).__name__}: {error}")


def resume_job(counting: CountBatch) -> Callable[[], Awaitable[None]]:
    """A job that finishes the batches of dead processes; to be run about every second."""

    async def resume() -> None:
        try:
            finished = await counting.resume()
        except (StorageUnavailable, CountingInterrupted) as error:
            _log.warning("batches not resumed", reason=str(error))
            return
        if finished:
            USAGE_BATCHES_RESUMED.inc(finished)
            _log.info("batches resumed", batches=finished)

    return resume


def prune_job(retention: Retention) -> Callable[[], Awaitable[None]]:
    """A job that prunes events past their retention; to be run about every hour."""

    async def prune() -> None:
        pruned = await retention.prune(now_utc())
        if pruned:
            USAGE_EVENTS_REMOVED.inc(pruned)
            _log.info("old events removed", events=pruned)

    return prune
