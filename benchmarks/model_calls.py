"""Measures throughput and memory of one worker process with a thousand slow model calls in flight."""

import asyncio
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from aiokafka import AIOKafkaConsumer

from benchmarks.backends import KAFKA, Broker, model_environment, scripted_model
from benchmarks.machine import peak_resident_mb
from benchmarks.pairs import PAIRS, Measured, Row, middle, paired, ratios
from benchmarks.upgrade_messages import preload
from shared.contracts.topics import COMPLETED, REWRITE
from shared.contracts.upgrade_results import UpgradeCompleted, UpgradeStatus
from shared.messaging.connection import make_consumer
from tests.running_stack import RunningStack

IN_FLIGHT = 1_000
CALL_SECONDS = 10.0
MAX_RSS_MB = 300.0
# The calls of the first lap start and end all at once; the second lap spreads them.
_WARM_UPS = 2
_LAP_WITHIN_SECONDS = 60.0
_ENVIRONMENT = {
    "STAGE_CONCURRENCY": str(IN_FLIGHT),
    "MODEL_MAX_IN_FLIGHT": str(IN_FLIGHT),
    "MODEL_ATTEMPT_TIMEOUT_SECONDS": "60",
    "LOG_LEVEL": "WARNING",
}
ROW = Row(
    "model-calls",
    "upgrades/s",
    f"A is how many upgrades one upgrader process of the running stack ends per second, with {IN_FLIGHT:,} model calls "
    f"of {CALL_SECONDS:g} s in flight and more waiting: {IN_FLIGHT:,} divided by the time in which that many end, "
    f"lap by lap, after two laps that are not counted. B is what the model allows: {IN_FLIGHT:,} / {CALL_SECONDS:g} s. "
    f"Met also requires that the process never uses more than {MAX_RSS_MB:g} MB.",
    goal=0.9,
)
ROWS = (ROW,)


async def measure(kind: str, chosen: Sequence[Row]) -> list[Measured]:
    """Measures the one row on one kind of broker."""
    with tempfile.TemporaryDirectory(prefix="bench-calls-") as folder:
        async with scripted_model(CALL_SECONDS) as model:
            environment = _ENVIRONMENT | model_environment(model)
            async with RunningStack(Path(folder), cluster=kind == KAFKA, environment=environment) as stack:
                broker = Broker(kind, stack.endpoints()["kafka"])
                worker = stack.pid("upgrader")
                await preload(broker, REWRITE.name, IN_FLIGHT * (PAIRS + _WARM_UPS + 1))
                laps = _Laps(broker)
                await laps.start()
                try:
                    pairs = await paired(laps.next, _allowed, warm_ups=_WARM_UPS)
                finally:
                    await laps.stop()
                assert stack.pid("upgrader") == worker, "the worker was restarted"
                peak = peak_resident_mb(worker)
    absolute = f"A {middle(pairs, 'a', 'per_second'):.1f}/s, B {IN_FLIGHT / CALL_SECONDS:.0f}/s; peak RSS {peak:.0f} MB"
    return [Measured(ROW.on(kind), ROW, ratios(pairs, "per_second"), absolute, peak < MAX_RSS_MB)]


async def _allowed() -> Mapping[str, float]:
    return {"per_second": IN_FLIGHT / CALL_SECONDS}


class _Laps:
    """Times the completion of upgrades in laps of as many as are in flight, so that waves of calls cancel out."""

    def __init__(self, broker: Broker) -> None:
        self._consumer: AIOKafkaConsumer = make_consumer(broker.settings(), group_id=None)
        self._ended = 0
        self._target = 0

    async def start(self) -> None:
        self._consumer.subscribe([COMPLETED.name])
        await self._consumer.start()

    async def stop(self) -> None:
        await self._consumer.stop()

    async def next(self) -> Mapping[str, float]:
        started = time.perf_counter()
        self._target += IN_FLIGHT
        async with asyncio.timeout(_LAP_WITHIN_SECONDS):
            while self._ended < self._target:
                for records in (await self._consumer.getmany(timeout_ms=20)).values():
                    for record in records:
                        end = UpgradeCompleted.model_validate_json(record.value)
                        assert end.status == UpgradeStatus.UPGRADED, end
                        self._ended += 1
        return {"per_second": IN_FLIGHT / (time.perf_counter() - started)}
