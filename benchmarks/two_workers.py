"""Measures the throughput of two worker processes, compared with one."""

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

from pydantic import BaseModel

from benchmarks.backends import Broker, running, scripted_model
from benchmarks.pairs import Measured, Row, medians, paired, ratios
from benchmarks.side_process import SideProcess, side
from benchmarks.upgrade_messages import preload
from shared.contracts.contract import now_utc
from shared.contracts.topics import REWRITE
from shared.contracts.upgrade_tasks import GivenUp, UpgradeTask
from shared.llm.client import ChatMessage, ModelClient
from shared.llm.sections import render_sections
from shared.llm.settings import ModelSettings
from shared.messaging.cloudevents import Envelope
from shared.messaging.consume.stage_runner import StageRunner
from shared.messaging.publish.producer import EventProducer
from shared.service.settings import ObservabilitySettings
from shared.service.telemetry import setup
from tests.conftest import eventually

IN_FLIGHT = 64
CALL_SECONDS = 0.5
BURN_SECONDS = 0.002
_MESSAGES = 16_000
_SETTLE_SECONDS = 1.5
_WINDOW_SECONDS = 4.0
_JOINED_WITHIN_SECONDS = 30.0
_SHARED = "The topic is preloaded; broker and model server share the cores with the workers."
MODEL = Row(
    "two-workers-model",
    "messages/s",
    f"A is two worker processes in one group, B is one: stage runner and model client, {IN_FLIGHT} calls of "
    f"{CALL_SECONDS:g} s in flight in each. {_SHARED}",
    goal=1.9,
)
CPU = Row(
    "two-workers-cpu",
    "messages/s",
    f"A is two worker processes in one group, B is one: the handler burns {BURN_SECONDS * 1000:g} ms of CPU. {_SHARED}",
    goal=1.6,
)
ROWS = (MODEL, CPU)


class Answer(BaseModel):
    """The structured output that the model returns."""

    text: str


async def measure(kind: str, chosen: Sequence[Row]) -> list[Measured]:
    """Measures the chosen rows on one kind of broker."""
    results = []
    async with running(kind) as broker, scripted_model(CALL_SECONDS) as model:
        topic = (await preload(broker, "two-workers.v1", _MESSAGES)).name
        options: dict[str, Any] = {"kind": broker.kind, "url": broker.url, "topic": topic}
        for row in chosen:
            options["model"] = model if row is MODEL else None
            worker = "benchmarks.two_workers:Worker"
            async with side(worker, **options) as first, side(worker, **options) as second:
                pairs = await paired(partial(_rate, (first, second)), partial(_rate, (first,)))
            absolute = medians(pairs, "{per_second:.0f}/s")
            results.append(Measured(row.on(kind), row, ratios(pairs, "per_second"), absolute))
    return results


async def _rate(workers: Sequence[SideProcess]) -> Mapping[str, float]:
    """Measures the messages per second of all workers together, once all of them are handling messages."""
    group = f"bench.{uuid.uuid4().hex}"
    await asyncio.gather(*(worker.call("read", group=group) for worker in workers))
    try:
        await eventually(lambda: _all_working(workers), _JOINED_WITHIN_SECONDS)
        await asyncio.sleep(_SETTLE_SECONDS)
        since = time.monotonic()
        await asyncio.sleep(_WINDOW_SECONDS)
        return {"per_second": sum([await worker.call("rate", since=since) for worker in workers])}
    finally:
        await asyncio.gather(*(worker.call("pause") for worker in workers))


async def _all_working(workers: Sequence[SideProcess]) -> bool:
    return all([await worker.call("is_working") for worker in workers])


class Worker:
    """One worker process. The handler calls the model if there is one, and burns CPU time otherwise."""

    def __init__(self, kind: str, url: str, topic: str, model: str | None) -> None:
        settings = Broker(kind, url).settings()
        # Few enough that the model is the limit and whole waves of calls can be distinguished.
        self._settings = settings.model_copy(update={"stage_concurrency": IN_FLIGHT})
        self._topic = replace(REWRITE, name=topic)
        self._telemetry = setup("benchmark", ObservabilitySettings(_env_file=None, log_level="WARNING"))
        self._producer = EventProducer(settings, source="benchmark")
        self._wave = IN_FLIGHT if model else 1
        self._client = _client(model) if model else None
        self._runner: StageRunner | None = None
        self._finished_at: list[float] = []

    async def start(self) -> None:
        await self._producer.start()
        if self._client:
            await self._client.start()

    async def read(self, group: str) -> None:
        self._finished_at.clear()
        self._runner = StageRunner(
            settings=self._settings,
            topic=self._topic,
            group=group,
            handler=self._call_model if self._client else self._burn,
            give_up=self._give_up,
            producer=self._producer,
            telemetry=self._telemetry,
        )
        await self._runner.start()

    async def is_working(self) -> bool:
        return bool(self._finished_at) and time.monotonic() - self._finished_at[-1] < 2 * CALL_SECONDS

    async def rate(self, since: float) -> float:
        """Returns the messages per second since then, over whole waves: calls that start together end together."""
        finished_at = [at for at in self._finished_at if at >= since]
        waves = (len(finished_at) - 1) // self._wave
        assert waves > 0, f"only {len(finished_at)} messages were handled"
        return waves * self._wave / (finished_at[waves * self._wave] - finished_at[0])

    async def pause(self) -> None:
        if self._runner is not None:
            await self._runner.stop(5)

    async def close(self) -> None:
        if self._client:
            await self._client.stop(1)
        await self._producer.stop(1)

    async def _call_model(self, envelope: Envelope) -> None:
        assert isinstance(envelope.data, UpgradeTask)
        assert self._client is not None
        await self._client.complete(
            operation="bench",
            messages=[ChatMessage(role="user", content=render_sections({"text": envelope.data.user_prompt}))],
            output=Answer,
            max_tokens=100,
            temperature=0.0,
            deadline=now_utc() + timedelta(seconds=60),
        )
        self._finished_at.append(time.monotonic())

    async def _burn(self, envelope: Envelope) -> None:
        # CPU time of this thread, so that time taken by other processes does not count.
        until = time.thread_time() + BURN_SECONDS
        while time.thread_time() < until:
            sum(range(1_000))
        self._finished_at.append(time.monotonic())

    async def _give_up(self, envelope: Envelope, given_up: GivenUp) -> None:
        raise RuntimeError(given_up.detail)


def _client(url: str) -> ModelClient:
    settings = ModelSettings(_env_file=None, openai_base_url=url)
    return ModelClient(settings.model_copy(update={"model_max_in_flight": IN_FLIGHT}))
