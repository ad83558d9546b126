"""Publishes events as CloudEvents, and raw records for dead letters and their replay."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from shared.contracts.contract import Contract
from shared.contracts.topics import Topic, all_topics
from shared.messaging.cloudevents import encode
from shared.messaging.connection import make_producer
from shared.messaging.errors import MessageTooLarge, PublishFailed
from shared.messaging.settings import KafkaSettings
from shared.observability.logs import get_logger
from shared.observability.tracing import current_traceparent

_CONFIRM_WITHIN_SECONDS = 15.0
_CONNECT_WITHIN_SECONDS = 30.0
_CONNECT_EVERY_SECONDS = 0.3
_RENEW_AFTER_FAILURES = 3
_CLOSE_WITHIN_SECONDS = 1.0
_REQUEST_OVERHEAD_BYTES = 64 * 1024
_RECORD_OVERHEAD_BYTES = 128
_HEADER_OVERHEAD_BYTES = 16

log = get_logger(__name__)


class EventProducer:
    """Publishes with acks=all and without linger. All tasks of a process may share one. Component.

    `source` is the CloudEvents source of its events: the name of the service.
    """

    def __init__(self, settings: KafkaSettings, source: str) -> None:
        self._settings = settings
        self._source = source
        self._max_request = max(topic.max_message_bytes for topic in all_topics()) + _REQUEST_OVERHEAD_BYTES
        self._producer: AIOKafkaProducer | None = None
        self._failures = 0
        self._renewing = asyncio.Lock()
        # One task per topic adds to the client's batch at a time. When many tasks wait for space in a full batch, the
        # client wakes all of them for each batch sent, and a burst of a thousand records costs twenty times the CPU.
        self._batch_locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def start(self) -> None:
        """Connects. Raises PublishFailed when no broker responds within 30 s."""
        deadline = asyncio.get_running_loop().time() + _CONNECT_WITHIN_SECONDS
        while True:
            producer = make_producer(self._settings, self._max_request)
            try:
                await asyncio.wait_for(producer.start(), _CONNECT_WITHIN_SECONDS)
                self._producer = producer
                return
            except (KafkaError, TimeoutError, OSError) as error:
                await _close(producer, _CLOSE_WITHIN_SECONDS)
                if asyncio.get_running_loop().time() > deadline:
                    raise PublishFailed(f"no broker at {self._settings.kafka_bootstrap_servers}") from error
            await asyncio.sleep(_CONNECT_EVERY_SECONDS)

    async def stop(self, grace_seconds: float) -> None:
        """Waits up to `grace_seconds` for pending sends."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await _close(producer, grace_seconds)

    async def publish(
        self,
        topic: Topic,
        key: str,
        data: Contract | bytes,
        *,
        event_id: str | None = None,
        subject: str | None = None,
        traceparent: str | None = None,
    ) -> None:
        """Publishes one event and returns when all replicas have it. `data` is the topic's model or its JSON.

        `traceparent` defaults to the current trace. Raises MessageTooLarge before sending anything, and PublishFailed
        when the broker does not confirm within 15 s.
        """
        value, headers = encode(
            topic,
            data,
            source=self._source,
            subject=subject,
            event_id=event_id,
            traceparent=traceparent or current_traceparent(),
        )
        await self.publish_record(topic, key.encode(), value, headers)

    async def publish_record(
        self, topic: Topic, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]
    ) -> None:
        """Publishes raw bytes; raises as `publish`."""
        if _record_size(key, value, headers) > topic.max_message_bytes:
            raise MessageTooLarge(f"exceeds the {topic.max_message_bytes} bytes that {topic.name} accepts")
        producer = self._producer
        if producer is None:
            raise PublishFailed("the producer is not running")
        if key is None and value is None:
            value = b""  # the client rejects a record without key and value
        try:
            async with asyncio.timeout(_CONFIRM_WITHIN_SECONDS):
                async with self._batch_locks[topic.name]:
                    confirmed = await producer.send(topic.name, value, key=key, headers=headers)
                await asyncio.shield(confirmed)
        except MessageSizeTooLargeError as error:
            raise MessageTooLarge(f"the broker rejected the record for {topic.name} as too large") from error
        except (KafkaError, TimeoutError, OSError) as error:
            await self._after_failure(producer)
            raise PublishFailed(f"{topic.name}: {type(error).__name__}") from error
        self._failures = 0

    async def _after_failure(self, failed: AIOKafkaProducer) -> None:
        """Replaces a producer after repeated failures: some errors (a fenced or unknown producer id) are permanent."""
        self._failures += 1
        if self._failures < _RENEW_AFTER_FAILURES or self._renewing.locked():
            return
        async with self._renewing:
            if self._producer is not failed:
                return
            fresh = make_producer(self._settings, self._max_request)
            try:
                await asyncio.wait_for(fresh.start(), _CONFIRM_WITHIN_SECONDS)
            except (KafkaError, TimeoutError, OSError):
                await _close(fresh, _CLOSE_WITHIN_SECONDS)
                return
            self._producer, self._failures = fresh, 0
            log.warning("producer_replaced")
            await _close(failed, _CLOSE_WITHIN_SECONDS)


def _record_size(key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]) -> int:
    """An upper bound of the bytes that the broker counts for a record."""
    headers_size = sum(len(name) + len(content or b"") + _HEADER_OVERHEAD_BYTES for name, content in headers)
    return len(key or b"") + len(value or b"") + headers_size + _RECORD_OVERHEAD_BYTES


async def _close(producer: AIOKafkaProducer, seconds: float) -> None:
    try:
        await asyncio.wait_for(producer.stop(), max(seconds, 0.1))
    except (KafkaError, TimeoutError, OSError) as error:
        log.warning("producer_not_closed", error=type(error).__name__)
