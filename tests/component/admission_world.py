"""Runs two gateways and a usage service as processes, and a worker that publishes usage for what it ends."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from deploy.local.servers import ServerProcess
from services.gateway.identity.api_keys import DEMO_TENANT_ID
from services.gateway.quota.held_work import end_event_of
from shared.contracts.internal_http import INTERNAL_TOKEN_HEADER
from shared.contracts.quota import PLAN_LIMITS, Meter, Plan, PlanChange
from shared.contracts.topics import COMPLETED, USAGE_RECORDED
from shared.contracts.upgrade_results import UpgradeCompleted, UpgradeResult
from shared.contracts.upgrade_tasks import UpgradeTask
from shared.contracts.usage import UsageRecorded
from shared.messaging.cloudevents import Envelope
from shared.messaging.publish.producer import EventProducer
from tests.component.gateway_world import TOKEN, Worker, World, world_in
from tests.component.service_process import service_process
from tests.conftest import eventually

PROMPT = {"userPrompt": "write about rain", "options": {"enableRAG": False}}
WITH_RAG = {"userPrompt": "write about rain"}
ASYNC = {"Prefer": "respond-async"}


class ReportingWorker(Worker):
    """Ends upgrades, and publishes the facts that the upgrader and the stages would publish for the ledger."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._producer = EventProducer(world.kafka, source="upgrader")
        self._started = False
        self.unreported: list[UpgradeResult] = []
        self.reporting = True

    async def start(self) -> None:
        await self._producer.start()
        self._started = True
        await super().start()

    async def answer(self, envelope: Envelope) -> UpgradeResult:
        result = await super().answer(envelope)
        self.unreported.append(result)
        if self.reporting:
            await self.report()
        return result

    async def report(self) -> None:
        """Publishes the facts of ended upgrades that have not been published."""
        unreported, self.unreported = self.unreported, []
        await asyncio.gather(*(self._report(result) for result in unreported))

    async def answer_all(self) -> None:
        """Ends all received upgrades that are open."""
        done = self._world.siblings.results
        for _, envelope in list(self.received):
            task = envelope.data
            assert isinstance(task, UpgradeTask)
            if task.upgrade_id not in done:
                await self.answer(envelope)

    async def _report(self, result: UpgradeResult) -> None:
        fact, key = UpgradeCompleted.of(result), result.tenant_id
        await self._producer.publish(COMPLETED, key, fact, event_id=end_event_of(result.upgrade_id))
        task = UpgradeTask(
            upgrade_id=result.upgrade_id, tenant_id=result.tenant_id, period=result.period,
            created_at=result.created_at, deadline=result.created_at, user_prompt="", itinerary=[],
        )  # fmt: skip
        for number, usage in enumerate(result.usage):
            event = UsageRecorded.for_task(task, usage, number, result.completed_at)
            await self._producer.publish(USAGE_RECORDED, key, event, event_id=event.event_id)

    async def close(self) -> None:
        await self._producer.stop(1)
        await super().close()


def usage_process(world: World) -> ServerProcess:
    """A usage service on the world's broker, not started."""
    variables = {
        "KAFKA_BOOTSTRAP_SERVERS": world.tansu.url,
        "KAFKA_ENABLE_IDEMPOTENCE": "false",
        "REDIS_URL": world.valkey.url,
        "INTERNAL_TOKEN": TOKEN,
    }
    return service_process("usage", variables, world.data_dir)


class AdmissionWorld:
    """A world with a usage service, and the operations of the admission tests."""

    def __init__(self, world: World, worker: ReportingWorker, usage: ServerProcess) -> None:
        self.world = world
        self.worker = worker
        self.usage = usage
        self.one: httpx.AsyncClient
        self.two: httpx.AsyncClient

    @property
    def clients(self) -> tuple[httpx.AsyncClient, httpx.AsyncClient]:
        return self.one, self.two

    async def limit(self, plan: Plan = Plan.ENTERPRISE, **overrides: int | None) -> None:
        """Sets the demo tenant's limits to current use plus the given amount of each meter; None is unlimited."""
        used = await self.meters()
        limits = {
            Meter(meter): None if more is None else used[meter]["used"] + used[meter]["held"] + more
            for meter, more in overrides.items()
        }
        async with httpx.AsyncClient(base_url=self.usage.url, headers={INTERNAL_TOKEN_HEADER: TOKEN}) as http:
            change = PlanChange(plan=plan, overrides=limits)
            answer = await http.put(
                f"/internal/tenants/{DEMO_TENANT_ID}/plan",
                content=change.to_json(),
                headers={"Content-Type": "application/json"},
            )
            assert answer.status_code == 200, answer.text
        wanted = PLAN_LIMITS[plan].with_overrides(limits).to_document()

        async def counts() -> bool:
            return {meter: found["limit"] for meter, found in (await self.meters()).items()} == wanted

        await eventually(counts)

    async def meters(self) -> dict[str, dict[str, Any]]:
        """The meters of `/api/quota`, which have to add up."""
        answer = await self.one.get("/api/quota")
        assert answer.status_code == 200, answer.text
        meters: dict[str, dict[str, Any]] = answer.json()["meters"]
        for meter in meters.values():
            adds_up(meter)
        return meters

    async def settled(self, timeout: float = 30) -> dict[str, dict[str, Any]]:
        """The meters, once nothing is held."""

        async def nothing_held() -> dict[str, dict[str, Any]] | None:
            meters = await self.meters()
            return meters if all(meter["held"] == 0 for meter in meters.values()) else None

        found = await eventually(nothing_held, timeout)
        assert found is not None
        return found

    async def burst(self, count: int, body: Any = PROMPT, **headers: str) -> list[httpx.Response]:
        """Sends `count` upgrades at once, half of them to each gateway."""
        sent = (self.clients[i % 2].post("/api/upgrade", json=body, headers=ASYNC | headers) for i in range(count))
        return await asyncio.gather(*sent)

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[list[dict[str, dict[str, Any]]]]:
        """Reads the quota repeatedly meanwhile and checks that each reading adds up and stays within its limits."""
        seen: list[dict[str, dict[str, Any]]] = []

        async def watch() -> None:
            while True:
                answer = await self.two.get("/api/quota")
                if answer.status_code == 200:
                    meters = answer.json()["meters"]
                    for meter in meters.values():
                        adds_up(meter)
                        assert meter["limit"] is None or meter["used"] + meter["held"] <= meter["limit"], meter
                    seen.append(meters)
                await asyncio.sleep(0.02)

        watching = asyncio.create_task(watch())
        try:
            yield seen
            assert not watching.done(), repr(watching.exception())
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def warm(self) -> None:
        """Returns when upgrades can be admitted."""

        async def answers() -> bool:
            return all([(await client.get("/api/quota")).status_code == 200 for client in self.clients])

        await eventually(answers, 30)


def adds_up(meter: dict[str, Any]) -> None:
    if meter["limit"] is None:
        assert meter["remaining"] is None
    elif meter["used"] + meter["held"] <= meter["limit"]:
        assert meter["used"] + meter["held"] + meter["remaining"] == meter["limit"], meter
    else:
        assert meter["remaining"] == 0


def verdicts(answers: list[httpx.Response]) -> dict[str, int]:
    """Counts answers by status, or by the code of the problem."""
    found: dict[str, int] = {}
    for answer in answers:
        kind = str(answer.json()["code"]) if answer.status_code >= 400 else str(answer.status_code)
        found[kind] = found.get(kind, 0) + 1
    return found


@contextlib.asynccontextmanager
async def admission_world_in(data_dir: Path, **environment: str) -> AsyncIterator[AdmissionWorld]:
    """A running world in `data_dir`."""
    async with world_in(data_dir, worker=ReportingWorker) as world:
        worker = world.worker
        assert isinstance(worker, ReportingWorker)
        usage = usage_process(world)
        async with await usage.start():
            # The first gateway of the world uses only the stand-ins.
            await world.gateway.stop()
            gateways = [world.new_gateway(USAGE_URL=usage.url, **environment) for _ in range(2)]
            async with await gateways[0].start(), await gateways[1].start():
                world.gateway, world.second = gateways
                limits = httpx.Limits(max_connections=400)
                running = AdmissionWorld(world, worker, usage)
                async with world.client(limits=limits) as one, world.client(world.second, limits=limits) as two:
                    running.one, running.two = one, two
                    await running.warm()
                    yield running
