"""Kafka in: facts about operations and about ends of upgrades, in batches."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from time import perf_counter

from services.usage.counting.count_batch import CountBatch, CountingInterrupted
from services.usage.counting.ledger_event import LedgerEvent, of_completed, of_usage
from services.usage.counting.retention import Retention
from shared.contracts.contract import format_utc, now_utc
from shared.contracts.upgrade_results import UpgradeCompleted
from shared.contracts.usage import UsageRecorded
from shared.messaging.cloudevents import Envelope
from shared.messaging.errors import Transient, Unprocessable
from shared.observability.logs import get_logger
from shared.observability.metrics import USAGE_BATCH_LATENCY, USAGE_BATCHES_RESUMED, USAGE_EVENTS, USAGE_EVENTS_REMOVED
from shared.storage.documents import StorageUnavailable

MAX_ID_LENGTH = 200
SMALL_BATCH = 100
PAUSE_AFTER_SMALL_BATCH_SECONDS = 0.2
MAX_AMOUNT = 10**15

_log = get_logger("usage")


def ledger_handler(
    counting: CountBatch, oldest_taken: Callable[[datetime], datetime]
) -> Callable[[Sequence[Envelope]], Awaitable[None]]:
    """Takes a batch of envelopes, which is then counted. Raises Transient when the batch is to be given again.

    `oldest_taken` says, of the present moment, before when nothing can have happened that is still counted.
    After a small batch it pauses: what comes meanwhile is then counted together, at the cost of one batch.
    """

    async def handle(envelopes: Sequence[Envelope]) -> None:
        began = perf_counter()
        oldest = oldest_taken(now_utc())
        events = [to_ledger_event(envelope, oldest) for envelope in envelopes]
        try:
            taken = await counting.take(events)
        except (StorageUnavailable, CountingInterrupted) as error:
            raise Transient(f"{type(error).__name__}: {error}") from error
        taken.counting.add_done_callback(lambda _: USAGE_BATCH_LATENCY.observe(perf_counter() - began))
        USAGE_EVENTS.labels("counted").inc(taken.new)
        USAGE_EVENTS.labels("duplicate").inc(len(events) - taken.new)
        if len(events) < SMALL_BATCH:
            await asyncio.sleep(PAUSE_AFTER_SMALL_BATCH_SECONDS)

    return handle


def left_to_resume(number: int, error: Exception) -> None:
    """A batch that is stored could not be counted here; it is when its lease has run out."""
    _log.warning("batch left to resume", batch=number, reason=f"{type(error).__name__}: {error}")


def resuming(counting: CountBatch) -> Callable[[], Awaitable[None]]:
    """Finishes batches that other processes have left; to be run every second or so."""

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


def removing_old(retention: Retention) -> Callable[[], Awaitable[None]]:
    """Removes the events that are older than they have to be kept; to be run every hour or so."""

    async def remove_old() -> None:
        now = now_utc()
        removed = await retention.remove_old(now, format_utc(now))
        if removed:
            USAGE_EVENTS_REMOVED.inc(removed)
            _log.info("old events removed", events=removed)

    return remove_old


def to_ledger_event(envelope: Envelope, oldest: datetime) -> LedgerEvent:
    """The ledger's view of a fact. Raises Unprocessable for one that no ledger can hold."""
    if not 0 < len(envelope.event_id) <= MAX_ID_LENGTH:
        raise Unprocessable("an event id has 1 to 200 characters")
    if isinstance(envelope.data, UsageRecorded):
        event = of_usage(envelope.event_id, envelope.data)
    elif isinstance(envelope.data, UpgradeCompleted):
        event = of_completed(envelope.event_id, envelope.data)
    else:
        raise Unprocessable(f"the ledger takes no {envelope.type}")
    if envelope.data.occurred_at.astimezone(UTC) < oldest:
        raise Unprocessable("it happened longer ago than the ledger keeps events, so it may have been counted before")
    if max(event.tokens_in, event.tokens_out, event.embeddings, event.cost_nano_usd, event.latency_ms) > MAX_AMOUNT:
        raise Unprocessable("an amount is above 10^15")
    return event
