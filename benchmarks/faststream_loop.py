"""Measures FastStream's own subscribers at the work of the stage loop, as a peer to compare with."""

import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

from faststream import AckPolicy

from benchmarks.backends import Broker, running
from benchmarks.pairs import Measured, Row, medians, paired, ratios
from benchmarks.side_process import side
from benchmarks.stage_loop import MESSAGES, Stopwatch
from benchmarks.upgrade_messages import preload
from shared.contracts.upgrade_tasks import RewriteTask
from shared.messaging.connection import group_options
from shared.messaging.consume.batch_runner import make_broker
from shared.messaging.settings import KafkaSettings

_SIDES = "B is the bare loop of stage-loop; both read the same 1 KB messages"
SINGLE = Row(
    "peer-faststream-single",
    "messages/s",
    f"A is a FastStream subscriber of models, one message at a time, acknowledged after its handler. {_SIDES}.",
)
BATCH = Row(
    "peer-faststream-batch",
    "messages/s",
    f"A is a FastStream batch subscriber of models, each batch acknowledged after its handler. {_SIDES}.",
)
ROWS = (SINGLE, BATCH)
# A commit per message is slow, and fewer messages are as accurate.
_SINGLE_MESSAGES = 4_000


async def measure(kind: str, chosen: Sequence[Row]) -> list[Measured]:
    """Measures the chosen rows on one kind of broker."""
    results = []
    async with running(kind) as broker:
        options: dict[str, Any] = {"kind": broker.kind, "url": broker.url}
        for row in chosen:
            messages = _SINGLE_MESSAGES if row is SINGLE else MESSAGES
            topic = (await preload(broker, f"{row.name}.v1", messages)).name
            async with (
                side("benchmarks.stage_loop:RawLoop", **options) as raw,
                side("benchmarks.faststream_loop:PeerLoop", **options) as peer,
            ):
                peers = partial(peer.call, "consume", topic=topic, messages=messages, batch=row is BATCH)
                pairs = await paired(peers, partial(raw.call, "consume", topic=topic, messages=messages))
            absolute = medians(pairs, "{per_second:,.0f}/s")
            results.append(Measured(row.on(kind), row, ratios(pairs, "per_second"), absolute))
    return results


class PeerLoop:
    """Side A: a FastStream subscriber."""

    def __init__(self, kind: str, url: str) -> None:
        self._settings: KafkaSettings = Broker(kind, url).settings()

    async def start(self) -> None: ...

    async def consume(self, topic: str, messages: int, batch: bool) -> dict[str, float]:
        """Reads the whole topic in a new group and returns the rates."""
        watch = Stopwatch(messages)

        async def handle_batch(tasks: list[RewriteTask]) -> None:
            watch.count(len(tasks))

        async def handle(_: RewriteTask) -> None:
            watch.count()

        broker: Any = make_broker(self._settings)
        subscriber = broker.subscriber(
            topic,
            batch=batch,
            ack_policy=AckPolicy.NACK_ON_ERROR,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=self._settings.kafka_fetch_max_wait_ms,
            **group_options(self._settings, f"bench.{uuid.uuid4().hex}"),
        )
        subscriber(handle_batch if batch else handle)
        await broker.start()
        try:
            return await watch.numbers
        finally:
            await broker.stop()
