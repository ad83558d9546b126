"""Handles one batch of records: decodes it, retries it, and dead-letters the records that fail alone."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from aiokafka import ConsumerRecord

from shared.contracts.topics import Topic
from shared.messaging.cloudevents import Envelope, decoder
from shared.messaging.errors import Transient, Undecodable, Unprocessable
from shared.messaging.publish.dead_letters import DeadLetters
from shared.messaging.publish.producer import EventProducer
from shared.messaging.retries import ATTEMPTS_AT_UNKNOWN_ERRORS, exponential_pause
from shared.observability.logs import get_logger
from shared.observability.metrics import RETRIES

_HANDLE_WITHIN_SECONDS = 60.0

BatchHandler = Callable[[list[Envelope]], Awaitable[None]]

log = get_logger(__name__)


class BatchDropped(Exception):
    """The partitions were revoked meanwhile; the records will be delivered again."""


class BatchHandling:
    """Passes batches to `handler`. `moved` is called before each attempt."""

    def __init__(
        self, topics: Sequence[Topic], handler: BatchHandler, producer: EventProducer, moved: Callable[[], None]
    ) -> None:
        self._decoders = {topic.name: decoder(topic) for topic in topics}
        self._dead_letters = {topic.name: DeadLetters(topic, producer) for topic in topics}
        self._handler = handler
        self._moved = moved

    async def handle(self, records: Sequence[ConsumerRecord], still_ours: Callable[[], bool]) -> None:
        """Returns when all records may be committed. Raises BatchDropped when `still_ours()` turns false."""
        readable: list[tuple[ConsumerRecord, Envelope]] = []
        for record in records:
            try:
                readable.append((record, self._decoders[record.topic](record.value, record.headers)))
            except Undecodable as error:
                await self._dead_letter(record, error, 1, still_ours)
        together = [envelope for _, envelope in readable]
        if together and await self._until_done(together, still_ours) is not None:
            for record, envelope in readable:
                failure = await self._until_done([envelope], still_ours)
                if failure is not None:
                    await self._dead_letter(record, failure, ATTEMPTS_AT_UNKNOWN_ERRORS, still_ours)

    async def _until_done(self, envelopes: list[Envelope], still_ours: Callable[[], bool]) -> Exception | None:
        """Returns None when handled, else the permanent error: Unprocessable, or the third that is not Transient."""
        attempts = failures = 0
        while True:
            attempts += 1
            self._moved()
            try:
                async with asyncio.timeout(_HANDLE_WITHIN_SECONDS):
                    await self._handler(envelopes)
                return None
            except (Transient, TimeoutError) as error:
                last: Exception = error
            except Exception as error:
                failures += 1
                last = error
            if isinstance(last, Unprocessable) or failures >= ATTEMPTS_AT_UNKNOWN_ERRORS:
                log.error("batch_failed", records=len(envelopes), exc_info=last)
                return last
            RETRIES.labels(topic=envelopes[0].type, error_type=type(last).__name__).inc()
            log.warning("batch_retried", records=len(envelopes), attempts=attempts, error_class=type(last).__name__)
            await asyncio.sleep(exponential_pause(attempts))
            if not still_ours():
                raise BatchDropped

    async def _dead_letter(
        self, record: ConsumerRecord, error: Exception, attempts: int, still_ours: Callable[[], bool]
    ) -> None:
        safe_to_quote = isinstance(error, Undecodable | Unprocessable)
        if not await self._dead_letters[record.topic].write(
            record,
            error_class=type(error).__name__,
            detail=str(error) if safe_to_quote else "unexpected error in the handler",
            attempts=attempts,
            keep_trying=still_ours,
        ):
            raise BatchDropped
