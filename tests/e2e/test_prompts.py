"""A template's owner writes a version, looks at its messages, and tries it on an upgrade."""

from functools import partial
from typing import Any

import pytest

from shared.contracts.contract import new_id
from tests.conftest import eventually
from tests.running_stack import RunningStack

pytestmark = pytest.mark.xdist_group("offline stack")

TEMPLATE = "You rewrite prompts for lawyers. {{ data_rules }}\n{{ contract }}\nAnswer in {{ language }}."


def new_version(**changes: Any) -> dict[str, Any]:
    return {"name": f"law-{new_id()}", "type": "CUSTOM", "template": TEMPLATE, "description": "For lawyers."} | changes


async def test_a_version_is_written_previewed_and_tried(offline_stack: RunningStack) -> None:
    async with offline_stack.client() as client:
        body = new_version()
        created = await client.post("/api/prompts/create", json=body)
        assert created.status_code == 201, created.text
        version = created.json()
        assert (version["version"], version["stage"]) == (1, "DEVELOPMENT")
        assert (await client.get(created.headers["Location"])).json() == version
        second = (await client.post("/api/prompts/create", json=body)).json()
        assert second["version"] == 2

        listed = (await client.get("/api/prompts", params={"name": body["name"]})).json()["items"]
        assert [item["id"] for item in listed] == [second["id"], version["id"]]

        prompt = {"userPrompt": "write a contract about rain in English", "options": {"mode": "full"}}
        preview = await client.post(f"/api/prompts/{version['id']}/preview", json=prompt)
        assert preview.status_code == 200, preview.text
        system, user = preview.json()["messages"]
        assert "for lawyers" in system["content"]
        assert "Answer in en." in system["content"]
        assert "contract about rain" in user["content"]
        assert preview.json()["tokens"] > 0

        tried = await client.post("/api/upgrade", json=prompt | {"options": {"promptId": version["id"]}})
        assert tried.json()["status"] == "upgraded", tried.text
        used = {"name": body["name"], "version": 1, "track": "pinned", "promptId": version["id"]}
        assert tried.json()["prompt"] == used


async def test_upgrades_use_the_platforms_version_meanwhile(offline_stack: RunningStack) -> None:
    async with offline_stack.client() as client:
        platform = (await client.get("/api/prompts", params={"name": "upgrader"})).json()["items"]
        in_production = [item for item in platform if item["stage"] == "PRODUCTION"]
        assert [item["owner"] for item in in_production] == ["platform"]
        answer = (await client.post("/api/upgrade", json={"userPrompt": "write a poem about rain"})).json()
        assert answer["prompt"] == {
            "name": "upgrader",
            "version": in_production[0]["version"],
            "track": "stable",
            "promptId": in_production[0]["id"],
        }


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"template": "{{ data_rules }} {{ unknown }} {{ contract }}"}, "template"),
        ({"template": "{{ data_rules.__class__ }} {{ contract }}"}, "template"),
        ({"template": "{% for x in range(9) %}"}, "template"),
        ({"template": "no rules for data"}, "template"),
        ({"name": "summarizer"}, "type"),
        ({"parameters": {"temperature": 9}}, "parameters.temperature"),
    ],
)
async def test_a_bad_version_names_its_field(offline_stack: RunningStack, changes: dict[str, Any], field: str) -> None:
    async with offline_stack.client() as client:
        refused = await client.post("/api/prompts/create", json=new_version(**changes))
        assert refused.status_code == 422, refused.text
        assert [error["field"] for error in refused.json()["errors"]] == [field]


async def test_only_rewriting_templates_are_tried(offline_stack: RunningStack) -> None:
    async with offline_stack.client() as client:
        body = new_version(name="summarizer", type="SUMMARIZER", template="{{ data_rules }} {{ contract }}")
        summarizer = (await client.post("/api/prompts/create", json=body)).json()
        for prompt_id in (summarizer["id"], new_id(), "no-id"):
            body = {"userPrompt": "write a poem about rain", "options": {"promptId": prompt_id}}
            refused = await client.post("/api/upgrade", json=body)
            assert refused.status_code == 422, refused.text
            assert [error["field"] for error in refused.json()["errors"]] == ["options.promptId"]


async def test_a_version_is_rolled_out_and_back_by_hand(offline_stack: RunningStack) -> None:
    async with offline_stack.client() as client:
        platform = (await client.get("/api/prompts", params={"name": "upgrader"})).json()["items"]
        platforms = {version["id"] for version in platform if version["owner"] == "platform"}
        body = new_version(name="upgrader", type="UPGRADER")
        first, second = [(await client.post("/api/prompts/create", json=body)).json()["id"] for _ in range(2)]

        async def used_next() -> dict[str, Any]:
            answer = await client.post("/api/upgrade", json={"userPrompt": "write a poem about rain", "userId": "u1"})
            used: dict[str, Any] = answer.json()["prompt"]
            return used

        async def is_used(*ids: str) -> bool:
            return (await used_next())["promptId"] in ids

        started = await client.post(f"/api/prompts/{first}/rollout", json={})
        assert (started.json()["stage"], started.json()["share"]) == ("CANARY_5", 0.05), started.text
        other = await client.post(f"/api/prompts/{second}/rollout", json={})
        assert (other.status_code, other.json()["code"]) == (409, "conflict")
        gated = await client.post(f"/api/prompts/{second}/rollout", json={"gates": [new_id()]})
        assert [error["field"] for error in gated.json()["errors"]] == ["gates.0"]

        stages = [(await client.post(f"/api/prompts/{first}/rollout", json={})).json()["stage"] for _ in range(3)]
        assert stages == ["CANARY_25", "CANARY_50", "PRODUCTION"]
        await eventually(partial(is_used, first))

        back = await client.post(f"/api/prompts/{first}/rollback", json={"reason": "lawyers complain"})
        assert back.json()["stage"] == "ROLLED_BACK", back.text
        read = (await client.get(f"/api/prompts/{first}/rollout")).json()
        assert [step["stage"] for step in read["history"]][-2:] == ["PRODUCTION", "ROLLED_BACK"]
        assert read["history"][-1]["reason"] == "lawyers complain"
        await eventually(partial(is_used, *platforms))
        refused = await client.post(f"/api/prompts/{next(iter(platforms))}/rollback", json={})
        assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
