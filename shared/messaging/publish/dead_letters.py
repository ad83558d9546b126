"""Writes records that cannot be handled to `<topic>.dlq`: the original bytes plus headers with source and reason."""

import asyncio
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime

from aiokafka import ConsumerRecord

from shared.contracts.contract import format_utc
from shared.contracts.topics import Topic, dead_letter_topic
from shared.messaging.errors import MessageTooLarge, PublishFailed
from shared.messaging.publish.producer import EventProducer
from shared.messaging.retries import exponential_pause
from shared.observability.logs import get_logger
from shared.observability.metrics import DEAD_LETTERS

SOURCE_TOPIC = "dlq_source_topic"
SOURCE_PARTITION = "dlq_source_partition"
SOURCE_OFFSET = "dlq_source_offset"
ATTEMPTS = "dlq_attempts"
ERROR_CLASS = "dlq_error_class"
ERROR_DETAIL = "dlq_error_detail"
FAILED_AT = "dlq_failed_at"
BODY_SIZE = "dlq_body_bytes"
BODY_SHA256 = "dlq_body_sha256"
HEADER_PREFIX = "dlq_"

_DETAIL_LIMIT = 300  # characters
_KEPT_BYTES = 1024
_KEPT_HEADERS = 32

log = get_logger(__name__)


class DeadLetters:
    """Writes the dead letters of one topic."""

    def __init__(self, source: Topic, producer: EventProducer) -> None:
        self._source = source
        self._topic = dead_letter_topic(source)
        self._producer = producer

    async def write(
        self,
        record: ConsumerRecord,
        *,
        error_class: str,
        detail: str,
        attempts: int,
        keep_trying: Callable[[], bool] = lambda: True,
    ) -> bool:
        """Writes the record and returns True when the broker has confirmed it.

        Retries with backoff while `keep_trying()` is true, then returns False: the record must not be committed.
        A record that exceeds the dead-letter topic's limit is written with the size and SHA-256 of its body instead
        of the body.
        """
        headers = _headers(record, error_class, detail, attempts)
        key, value = record.key, record.value
        tries = 0
        while True:
            try:
                await self._producer.publish_record(self._topic, key, value, headers)
                break
            except MessageTooLarge:
                headers = _headers_without_body(record, error_class, detail, attempts)
                key, value = (key if len(key or b"") <= _KEPT_BYTES else None), None
            except PublishFailed as error:
                tries += 1
                log.error("dead_letter_not_written", topic=self._topic.name, tries=tries, error=str(error))
            if not keep_trying():
                return False
            await asyncio.sleep(exponential_pause(tries + 1))
        DEAD_LETTERS.labels(topic=self._source.name, error_type=error_class).inc()
        log.warning(
            "dead_lettered",
            topic=self._source.name,
            partition=record.partition,
            offset=record.offset,
            error_class=error_class,
            detail=detail[:_DETAIL_LIMIT],
            attempts=attempts,
        )
        return True


def _headers(record: ConsumerRecord, error_class: str, detail: str, attempts: int) -> list[tuple[str, bytes]]:
    why = {
        SOURCE_TOPIC: record.topic,
        SOURCE_PARTITION: str(record.partition),
        SOURCE_OFFSET: str(record.offset),
        ATTEMPTS: str(attempts),
        ERROR_CLASS: error_class,
        ERROR_DETAIL: detail[:_DETAIL_LIMIT],
        FAILED_AT: format_utc(datetime.now(UTC)),
    }
    return [*record.headers, *((name, text.encode()) for name, text in why.items())]


def _headers_without_body(
    record: ConsumerRecord, error_class: str, detail: str, attempts: int
) -> list[tuple[str, bytes]]:
    """As `_headers`, plus size and hash of the body. Large original headers are dropped, and those beyond the 32nd."""
    body = record.value or b""
    kept = [(name, content) for name, content in record.headers if len(content or b"") <= _KEPT_BYTES]
    why = _headers(record, error_class, detail, attempts)[len(record.headers) :]
    size = (BODY_SIZE, str(len(body)).encode())
    return [*kept[:_KEPT_HEADERS], *why, size, (BODY_SHA256, hashlib.sha256(body).hexdigest().encode())]
