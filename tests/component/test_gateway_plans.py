"""Plans and statistics over the gateway, with a real usage service."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.gateway.identity.api_keys import DEMO_TENANT_ID
from shared.contracts.contract import new_id, now_utc, period_of
from shared.contracts.topics import USAGE_RECORDED
from shared.contracts.usage import UsageRecorded
from shared.messaging.publish.producer import EventProducer
from tests.component.gateway_world import API_KEY, TOKEN, World, world_in
from tests.component.test_usage_service import UsageProcess, usage_process
from tests.conftest import eventually

ADMIN_KEY = "the-operators-key-of-the-tests"
PLAN = f"/api/admin/tenants/{DEMO_TENANT_ID}/plan"
NO_WHOLE_NUMBERS: list[Any] = [True, "many", "5", 1.0, 1.5, [], {}]


class Gateways:
    """Two replicas with the operators' key and one without, on one usage service."""

    def __init__(self, world: World, usage: UsageProcess, first: httpx.AsyncClient, second: httpx.AsyncClient) -> None:
        self.world = world
        self.usage = usage
        self.first = first
        self.second = second

    async def set_plan(self, body: Any, key: str | None = ADMIN_KEY, path: str = PLAN) -> httpx.Response:
        return await self.first.put(path, json=body, headers={"X-Admin-Key": key} if key else {})

    async def limits(self, gateway: httpx.AsyncClient) -> dict[str, int | None]:
        answer = await gateway.get("/api/quota")
        assert answer.status_code == 200, answer.text
        return {meter: state["limit"] for meter, state in answer.json()["meters"].items()}


@pytest.fixture(scope="module")
async def gateways(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateways]:
    folder: Path = tmp_path_factory.mktemp("plans")
    async with world_in(folder) as world, usage_process(world.tansu.url, folder, token=TOKEN) as usage:
        await eventually(usage.is_ready, 40)
        told = {"USAGE_URL": str(usage.http.base_url), "ADMIN_API_KEY": ADMIN_KEY}
        replicas = [world.new_gateway(**told) for _ in range(2)]
        try:
            for replica in replicas:
                await replica.start()
            async with world.client(replicas[0]) as first, world.client(replicas[1]) as second:
                yield Gateways(world, usage, first, second)
        finally:
            for replica in replicas:
                await replica.stop()


async def test_a_change_counts_at_once_on_every_replica_up_and_down(gateways: Gateways) -> None:
    pro = {"upgrades": 100_000, "tokens": 100_000_000, "embeddings": 1_000_000}
    assert await gateways.limits(gateways.first) == pro
    for plan, overrides, limits in (
        ("PLUS", {}, {"upgrades": 10_000, "tokens": 10_000_000, "embeddings": 100_000}),
        ("ENTERPRISE", {}, {"upgrades": None, "tokens": None, "embeddings": None}),
        ("FREE", {"tokens": None, "upgrades": 7}, {"upgrades": 7, "tokens": None, "embeddings": 10_000}),
        ("PRO", {}, pro),
    ):
        answer = await gateways.set_plan({"plan": plan, "overrides": overrides})
        assert (answer.status_code, answer.json()["plan"], answer.json()["limits"]) == (200, plan, limits)
        assert answer.json()["overrides"] == overrides
        assert await gateways.limits(gateways.first) == limits
        assert await gateways.limits(gateways.second) == limits


async def test_a_lowered_limit_refuses_the_next_upgrade(gateways: Gateways) -> None:
    await gateways.set_plan({"plan": "PRO", "overrides": {"upgrades": 0}})
    refused = await gateways.second.post("/api/upgrade", json={"userPrompt": "Write a poem."})
    assert (refused.status_code, refused.json()["code"], refused.json()["meter"]) == (
        429,
        "quota_exceeded",
        "upgrades",
    )
    await gateways.set_plan({"plan": "PRO"})
    accepted = await gateways.second.post("/api/upgrade", json={"userPrompt": "Write a poem."})
    assert accepted.status_code == 200


async def test_changes_of_plans_are_audited(gateways: Gateways) -> None:
    await gateways.set_plan({"plan": "PRO", "overrides": {"embeddings": 5}})
    entry = (await gateways.first.get("/api/audit?limit=1")).json()["items"][0]
    assert (entry["action"], entry["target"], entry["outcome"]) == ("plan.changed", DEMO_TENANT_ID, "done")
    assert entry["actor"] == {"kind": "operator", "id": "operator"}
    assert entry["details"] == {"plan": "PRO", "overrides": {"embeddings": 5}}
    await gateways.set_plan({"plan": "PRO"})


@pytest.mark.parametrize("key", [None, "", "wrong", ADMIN_KEY + "x", API_KEY])
async def test_without_the_operators_key_nothing_happens(gateways: Gateways, key: str | None) -> None:
    answer = await gateways.set_plan({"plan": "ENTERPRISE"}, key)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert "X-Admin-Key" in answer.headers["WWW-Authenticate"]
    assert (await gateways.limits(gateways.first))["upgrades"] == 100_000


async def test_where_no_key_is_set_there_is_no_such_route(gateways: Gateways) -> None:
    async with gateways.world.client() as keyless:
        for key in ("", ADMIN_KEY):
            answer = await keyless.put(PLAN, json={"plan": "FREE"}, headers={"X-Admin-Key": key})
            nowhere = await keyless.put("/api/admin/nothing", json={}, headers={"X-Admin-Key": key})
            assert (answer.status_code, answer.json()["detail"]) == (404, nowhere.json()["detail"])


@pytest.mark.parametrize("tenant", ["01a2096c-cff2-777a-8bed-abf0de6381e3", "nobody", "%2e%2e"])
async def test_a_tenant_that_nobody_is_is_not_found(gateways: Gateways, tenant: str) -> None:
    answer = await gateways.set_plan({"plan": "FREE"}, path=f"/api/admin/tenants/{tenant}/plan")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "plan"),
        ({"plan": "GOLD"}, "plan"),
        ({"plan": "FREE", "overrides": {"cost": 1}}, "overrides.cost"),
        ({"plan": "FREE", "overrides": {"tokens": -1}}, "overrides.tokens"),
        *(({"plan": "FREE", "overrides": {"tokens": no_number}}, "overrides.tokens") for no_number in NO_WHOLE_NUMBERS),
        ({"plan": "FREE", "limit": 3}, "limit"),
    ],
)
async def test_a_body_that_is_wrong_is_told_where(gateways: Gateways, body: Any, field: str) -> None:
    answer = await gateways.set_plan(body)
    assert (answer.status_code, [error["field"] for error in answer.json()["errors"]]) == (422, [field])


async def test_statistics_are_those_of_the_callers_tenant(gateways: Gateways) -> None:
    producer = EventProducer(gateways.world.kafka, source="test")
    await producer.start()
    try:
        events = [_event(DEMO_TENANT_ID, "u_1", 100), _event(DEMO_TENANT_ID, "u_2", 20), _event(new_id(), "u_1", 3)]
        for event in events:
            await producer.publish(USAGE_RECORDED, event.tenant_id, event, event_id=event.event_id)
    finally:
        await producer.stop(1)

    async def counted() -> bool:
        return not await gateways.usage.missing([event.event_id for event in events])

    await eventually(counted, 30)
    stats = (await gateways.first.get("/api/stats?groupBy=user")).json()
    assert (stats["totals"]["tokensIn"], stats["from"][-2:]) == (120, "01")
    assert {group["key"]: group["tokensIn"] for group in stats["groups"]} == {"u_1": 100, "u_2": 20}
    assert set(stats) == {"from", "to", "totals", "groups"}
    assert set(stats["totals"]) == {
        *("upgrades", "tokensIn", "tokensOut", "embeddings"),
        *("costUsd", "cacheHitRate", "errorRate", "latencyMs"),
    }


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("from=2026-11-02&to=2026-11-01", "to"),
        ("from=2020-01-01&to=2026-11-01", "to"),
        ("from=9000-01-01", "from"),
        ("from=soon", "from"),
        ("to=2026-13-01", "to"),
        ("groupBy=tenant", "groupBy"),
    ],
)
async def test_a_range_that_makes_no_sense_names_its_field(gateways: Gateways, query: str, field: str) -> None:
    answer = await gateways.first.get(f"/api/stats?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert [error["field"] for error in answer.json()["errors"]] == [field]


@pytest.mark.parametrize(
    "moment",
    [
        "2026-11-01",
        "2026-11-01T00:00:00Z",
        "2026-11-01T00:00:00+00:00",
        "2026-11-01T00:00:00.000Z",
        "2026-11-01t00:00:00z",
    ],
)
async def test_a_day_may_be_told_by_its_midnight_in_utc(gateways: Gateways, moment: str) -> None:
    answer = await gateways.first.get("/api/stats", params={"from": moment, "to": "2026-11-08"})
    assert (answer.status_code, answer.json()["from"], answer.json()["to"]) == (200, "2026-11-01", "2026-11-08")


@pytest.mark.parametrize("field", ["from", "to"])
@pytest.mark.parametrize(
    "moment",
    [
        *("1793491200", "1793491200.0", "1793491200000", "-1", "1e3", "nan", ""),
        *("2026-11-01T00:00:00+07:00", "2026-11-01T07:00:00+07:00", "2026-11-01T00:00:00-00:00", "2026-11-01T00:00:00"),
        *("2026-11-01T00:00:01Z", "2026-11-01T00:00:00.001Z", "2026-11-01T10:00:00Z", "2026-11-01 00:00:00Z"),
        *("2026-11-01T00:00Z", "2026-11-01Z", "20261101", "2026-W48-1", "2026-305", "26-11-01", "2026-11-1"),
        *("2026-02-30", "2026-13-01", "0000-01-01", " 2026-11-01", "2026-11-01\n", "２０２６-11-01"),
    ],
)
async def test_anything_else_is_no_day(gateways: Gateways, field: str, moment: str) -> None:
    answer = await gateways.first.get("/api/stats", params={field: moment})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    (error,) = answer.json()["errors"]
    assert error["field"] == field
    assert error["detail"] == "Must be a day as YYYY-MM-DD, or its midnight in UTC as YYYY-MM-DDT00:00:00Z."


async def test_the_openapi_document_says_what_a_day_is(gateways: Gateways) -> None:
    document = (await gateways.first.get("/openapi.json")).json()
    parameters = {p["name"]: p for p in document["paths"]["/api/stats"]["get"]["parameters"]}
    for name in ("from", "to"):
        taken = [kind.get("format") for kind in parameters[name]["schema"]["anyOf"]]
        assert taken == ["date", "date-time", None]
        assert "midnight" in parameters[name]["description"]


async def test_without_usage_nothing_is_claimed(gateways: Gateways) -> None:
    """Runs last, because it stops the usage service."""
    gateways.usage.process.kill()
    await gateways.usage.process.wait()
    stats = await gateways.first.get("/api/stats")
    assert (stats.status_code, stats.json()["code"], stats.headers["Retry-After"]) == (503, "unavailable", "2")
    answer = await gateways.set_plan({"plan": "FREE"})
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    entry = (await gateways.first.get("/api/audit?limit=1")).json()["items"][0]
    assert (entry["action"], entry["outcome"]) == ("plan.changed", "unfinished")


def _event(tenant_id: str, user_ref: str, tokens: int) -> UsageRecorded:
    return UsageRecorded(
        event_id=new_id(),
        tenant_id=tenant_id,
        user_ref=user_ref,
        component="upgrader",
        operation="rewrite",
        tokens_in=tokens,
        period=period_of(now_utc()),
        occurred_at=now_utc(),
    )
